// The info panels of Load UNet and Load ControlNet: what is in the chosen file, and whether it can be used, before a run.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { clipFor, known, linesOf, notListed, valueOf } from './core/info.js'
import { MARGIN, addWidget, allNodes, element, growNode, instancesOf } from './widget.js'

// node -> its combo of files, the folders in models that they are in, by the beginning of the name, the route that answers
// about one, what else the answer depends on, lines seen
const NODES = {
  TemporalUNetLoader: {
    combo: 'unet_name',
    folders: { 'checkpoints/': 'checkpoints', '': 'diffusion_models' },
    route: '/temporal_unet/unet_info',
    dtype: 'weight_dtype',
    clip: true,
    lines: 9
  },
  TemporalUNetControlNetLoader: {
    combo: 'control_net_name',
    folders: { '': 'controlnet' },
    route: '/temporal_unet/controlnet_info',
    lines: 8
  }
}
const LINE = 15 // pixels
const FADE = 'linear-gradient(to top, transparent, black 30px)' // of the last lines: there are more below
const DELAY = 50 // ms in which several changes become one question
const ERROR_COLOR = 'color-mix(in srgb, var(--error-text) 60%, var(--input-text))' // readable on light and on dark

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

class InfoPanel {
  constructor(node, kind) {
    Object.assign(this, { node, kind, asked: '', shown: '' }) // the last question, and the words shown
    const height = kind.lines * LINE // whatever the text: the host would take a node that grows for an edit
    this.element = element('div', { position: 'relative', height: '100%', minHeight: `${height}px` })
    this.element.dataset.testid = 'temporal-unet-info'
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
    Object.assign(this.text, { tabIndex: 0, role: 'region', ariaLive: 'polite', ariaLabel: `About ${kind.combo}` })
    this.text.dataset.captureWheel = 'true' // Nodes 2.0 leaves it the wheel while it has the focus
    this.text.addEventListener('wheel', (event) => {
      const scrolls = this.text.scrollHeight > this.text.clientHeight
      if (scrolls && !event.ctrlKey && !event.metaKey) event.stopPropagation() // else the canvas would take it
    })
    this.text.addEventListener('scroll', () => this.fade())
    new ResizeObserver(() => this.fade()).observe(this.text)
    this.element.append(this.text)
    addWidget(node, 'file_info', 'TEMPORAL_UNET_INFO', this.element, () => [height + 2 * MARGIN])
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

  /** Asks again soon where the question has changed, or in any case where `force`. */
  refresh(force = false) {
    if (force) this.asked = ''
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.ask(), DELAY)
  }

  async ask() {
    const { combo, folders, route, dtype: dtypeWidget } = this.kind
    const { options } = this.find(combo)
    const name = valueOf(this.node, combo, instancesOf)
    if (name === null) return this.say({ lines: ['The file is named by another node.'] }, '')
    const dtype = dtypeWidget && valueOf(this.node, dtypeWidget, instancesOf)
    if (dtype === null) return this.say({ lines: [`${dtypeWidget} comes from another node.`] }, '')
    const names = typeof options.values === 'function' ? options.values(this.find(combo), this.node) : options.values
    if (!names.includes(name)) return this.say({ error: notListed(name, folders) }, '')
    const clip = this.kind.clip ? clipFor(this.node, targets, origins, instancesOf) : {}
    const query = new URLSearchParams({ name, ...(dtype && { weight_dtype: dtype }), ...known(clip) })
    const question = `${route}?${query}`
    if (question === this.asked) return
    this.asked = question
    const answer = await this.fetch(question)
    if (question !== this.asked) return // another question was asked meanwhile
    this.say(answer.error ? answer : { lines: linesOf(answer, clip) }, question)
  }

  async fetch(question) {
    try {
      return await (await api.fetchApi(question)).json()
    } catch {
      return { error: 'The server gives no answer about this file.' }
    }
  }

  say({ lines, error }, question) {
    this.asked = question
    const words = (lines ?? [error]).join('\n')
    if (words === this.shown) return // it may be scrolled
    this.shown = words
    this.text.replaceChildren(
      ...(lines ?? [error]).map((line, number) => {
        const row = element('div', error ? { color: ERROR_COLOR } : { fontWeight: number ? 'normal' : 'bold' })
        row.textContent = line // never as HTML: file names are anybody's
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
