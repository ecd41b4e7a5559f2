// The info panels of the loaders: what is in the chosen file, and whether it can be used with what it is wired to, before a run.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { canAsk, clipFor, known, linesOf, noFile, notListed, valueOf, windowFor } from './core/info.js'
import { controlWarnings, modelWarnings, warnedOfLacking } from './core/family_warnings.js'
import { textOf } from './core/text.js'
import { Growth } from './growth.js'
import { t } from './texts.js'
import { addWidget, allNodes, element, growNode, instancesOf } from './widget.js'

// node -> its combo of files, the folders in models that they are in, by the beginning of the name, the route that answers
// about one, what else the answer depends on, what is to be warned of, pixels that show the usual file names
const NODES = {
  TemporalUNetCheckpointLoader: {
    combo: 'ckpt_name',
    folders: { '': 'checkpoints' },
    route: '/temporal_unet/checkpoint_info',
    dtype: 'weight_dtype',
    clip: true,
    warnings: modelWarnings,
    width: 340
  },
  TemporalUNetLoader: {
    combo: 'unet_name',
    folders: { 'checkpoints/': 'checkpoints', 'diffusion_models/': 'diffusion_models', '': 'diffusion_models' },
    route: '/temporal_unet/unet_info',
    dtype: 'weight_dtype',
    clip: true,
    warnings: modelWarnings,
    width: 340
  },
  TemporalUNetControlNetLoader: {
    combo: 'control_net_name',
    folders: { '': 'controlnet' },
    route: '/temporal_unet/controlnet_info',
    warnings: (node, answer, instances) => controlWarnings(node, answer, (other) => panels.get(other)?.answer, instances),
    width: 380
  }
}
const LINE = 15 // pixels
const HEIGHTS = [LINE, 16 * LINE] // least and most of the text; a longer one is scrolled
const FADE = 'linear-gradient(to top, transparent, black 30px)' // of the last lines: there are more below
const DELAY = 50 // ms in which several changes become one question
const WARNING_COLOR = 'color-mix(in srgb, var(--error-text) 60%, var(--input-text))' // readable on light and on dark

const panels = new WeakMap() // node -> its InfoPanel

function linked(node, ends) {
  return ends.map((id) => node.graph?.getNodeById(id)).filter(Boolean)
}

function targets(node) {
  const links = (node.outputs ?? []).flatMap((output) => output.links ?? [])
  return linked(
    node,
    links.map((id) => node.graph?.getLink(id)?.target_id)
  )
}

function origins(node) {
  const links = (node.inputs ?? []).map((input) => input.link).filter((id) => id != null)
  return linked(
    node,
    links.map((id) => node.graph?.getLink(id)?.origin_id)
  )
}

/** A line {key, values, text, unknown} in the language of the editor. */
function worded({ key, values, text, unknown }) {
  if (!key) return text
  return t(key, unknown ? { what: unknown.map((name) => t(`panel.clip.${name}`)) } : values, text)
}

class InfoPanel {
  constructor(node, kind) {
    Object.assign(this, { node, kind, asked: '', shown: '' }) // the last question, and the words shown
    this.rows = element('div', {})
    this.text = element('div', {
      position: 'absolute',
      inset: '0',
      padding: '0 4px',
      overflow: 'hidden auto',
      font: `12px/${LINE}px sans-serif`,
      overflowWrap: 'anywhere',
      userSelect: 'text',
      color: 'var(--input-text)'
    })
    Object.assign(this.text, {
      tabIndex: 0,
      role: 'region',
      ariaLive: 'polite',
      ariaLabel: t('panel.label', { input: kind.combo })
    })
    this.text.dataset.captureWheel = 'true' // Nodes 2.0 leaves it the wheel while it has the focus
    this.text.addEventListener('wheel', (event) => {
      const scrolls = this.text.scrollHeight > this.text.clientHeight
      if (scrolls && !event.ctrlKey && !event.metaKey) event.stopPropagation() // else the canvas would take it
    })
    this.text.addEventListener('scroll', () => this.fade())
    this.text.append(this.rows)
    this.element = element('div', { position: 'relative', height: '100%' })
    this.element.dataset.testid = 'temporal-unet-info'
    this.element.append(this.text)
    const growth = new Growth(node, this.element, this.rows, HEIGHTS)
    for (const watched of [this.text, this.rows]) new ResizeObserver(() => this.fade()).observe(watched)
    addWidget(node, 'file_info', 'TEMPORAL_UNET_INFO', this.element, () => growth.heights)
    node.setSize([Math.max(node.size[0], kind.width), node.size[1]])
    growNode(node)
    for (const name of [kind.combo, kind.dtype]) if (name) this.follow(this.find(name))
  }

  find(name) {
    return this.node.widgets.find((widget) => widget.name === name)
  }

  follow(widget) {
    const { callback } = widget
    widget.callback = (...args) => {
      const result = callback?.apply(widget, args)
      this.refresh()
      return result
    }
  }

  /** Looks again soon; asks again where the question has changed, or in any case where `force`. */
  refresh(force = false) {
    if (force) this.asked = ''
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.look(), DELAY)
  }

  async look() {
    const { url, clip, line, name } = this.question()
    Object.assign(this, { clip, line })
    if (url && url === this.asked) return this.show()
    Object.assign(this, { asked: url, answer: null })
    const answer = url && (await this.fetch(url, name))
    if (url !== this.asked) return // another question was asked meanwhile
    this.answer = answer
    for (const node of allNodes()) panels.get(node)?.show() // others may be compared with this answer
  }

  /** {url, clip, name} to ask about, or {line} to show instead. */
  question() {
    const { combo, folders, route, dtype: dtypeWidget } = this.kind
    const name = valueOf(this.node, combo, instancesOf)
    if (name === null) return { line: { key: 'panel.linkedFile' } }
    const dtype = dtypeWidget && valueOf(this.node, dtypeWidget, instancesOf)
    if (dtype === null) return { line: { key: 'panel.linkedInput', values: { input: dtypeWidget } } }
    if (!name) return { line: noFile(folders) }
    const clip = this.kind.clip ? clipFor(this.node, targets, origins, instancesOf) : {}
    const window = this.kind.clip && windowFor(this.node, targets, origins, instancesOf)
    const about = { ...(dtype && { weight_dtype: dtype }), ...known(clip), ...(window && { window_frames: window }) }
    const query = new URLSearchParams({ name: textOf(name), ...about })
    return { url: `${route}?${query}`, clip, name: textOf(name) }
  }

  /** What the server says of the file `name`: also of one that the list does not offer, whose name was valid in older versions. */
  async fetch(url, name) {
    if (!canAsk(url)) return { line: notListed(name, this.kind.folders) }
    try {
      const answer = await api.fetchApi(url)
      return answer.status === 404 ? { line: notListed(name, this.kind.folders) } : await answer.json()
    } catch {
      return { error: t('panel.noAnswer') }
    }
  }

  lines() {
    const line = this.line ?? this.answer.line
    if (line) return [line]
    if (this.answer.error) return [{ text: this.answer.error, warn: true }]
    const about = warnedOfLacking(linesOf(this.answer, this.clip), this.node.outputs)
    return [...this.kind.warnings(this.node, this.answer, instancesOf), ...about]
  }

  show() {
    if (!this.line && !this.answer) return // asked, and not answered yet
    const lines = this.lines().map((line) => ({ words: worded(line), warn: line.warn }))
    const shown = JSON.stringify(lines)
    if (shown === this.shown) return // it may be scrolled
    this.shown = shown
    const title = lines.findIndex(({ warn }) => !warn)
    this.rows.replaceChildren(
      ...lines.map(({ words, warn }, index) => {
        const row = element('div', { fontWeight: index === title ? 'bold' : 'normal', ...(warn && { color: WARNING_COLOR }) })
        row.textContent = words // never as HTML: file names are anybody's
        return row
      })
    )
    this.text.scrollTop = 0
    this.fade()
  }

  fade() {
    const { scrollTop, clientHeight, scrollHeight } = this.text
    this.text.style.maskImage = scrollTop + clientHeight < scrollHeight - 1 ? FADE : ''
  }
}

const refreshAll = (force) => allNodes().forEach((node) => panels.get(node)?.refresh(force))

api.addEventListener('graphChanged', () => refreshAll(false)) // a clip's size, or a link to it
document.addEventListener('keyup', () => refreshAll(false)) // in Nodes 2.0 the host reports what is typed only at the next click

app.registerExtension({
  name: 'TemporalUNet.InfoPanels',
  nodeCreated(node) {
    const kind = NODES[node.constructor.comfyClass]
    if (!kind) return
    const panel = new InfoPanel(node, kind)
    panels.set(node, panel)
    const { onConfigure } = node
    node.onConfigure = function (...args) {
      panel.refresh()
      return onConfigure?.apply(this, args)
    }
    panel.refresh()
  },
  afterConfigureGraph: () => refreshAll(false),
  refreshComboInNodes: () => refreshAll(true)
})
