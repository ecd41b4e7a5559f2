// The info panels of Load UNet and Load ControlNet: what is in the chosen file, and whether it can be used, before a run.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { clipFor, notListed } from './core/info.js'
import { MARGIN, addWidget, element } from './widget.js'

const NODES = { // node -> its combo of files, the route that tells about one, what else the answer depends on, its usual length
  TemporalUNetLoader: { combo: 'unet_name', route: '/temporal_unet/unet_info', dtype: 'weight_dtype', clip: true, lines: 6 },
  TemporalUNetControlNetLoader: { combo: 'control_net_name', route: '/temporal_unet/controlnet_info', lines: 5 },
}
const LINE = 17 // pixels
const DELAY = 50 // ms in which several changes become one question
const ERROR_COLOR = 'color-mix(in srgb, var(--error-text) 60%, var(--input-text))' // readable on light and on dark

const panels = new Map() // node -> its InfoPanel

function linked(node, ends) {
  return ends.map((id) => node.graph?.getNodeById(id)).filter(Boolean)
}

function targets(node) {
  const links = (node.outputs ?? []).flatMap((output) => output.links ?? [])
  return linked(node, links.map((id) => node.graph?.getLink(id)?.target_id))
}

function origins(node) {
  const links = (node.inputs ?? []).map((input) => input.link).filter((id) => id != null)
  return linked(node, links.map((id) => node.graph?.getLink(id)?.origin_id))
}

class InfoPanel {
  constructor(node, kind) {
    Object.assign(this, { node, kind, asked: '', height: kind.lines * LINE }) // asked: the last question
    this.element = element('div', {
      boxSizing: 'border-box', height: '100%', minHeight: `${this.height}px`, padding: '0 4px', overflow: 'hidden',
    })
    this.element.dataset.testid = 'temporal-unet-info'
    this.text = element('div', {
      font: `12px/${LINE}px sans-serif`, overflowWrap: 'anywhere', userSelect: 'text', color: 'var(--input-text)',
    })
    this.element.append(this.text)
    addWidget(node, 'file_info', 'TEMPORAL_UNET_INFO', this.element, () => [this.height + 2 * MARGIN, this.height + 2 * MARGIN])
    new ResizeObserver(() => this.fit()).observe(this.text)
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

  /** Asks again soon where the question has changed, or in any case where `anew`. */
  refresh(anew = false) {
    if (anew) this.asked = ''
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.ask(), DELAY)
  }

  async ask() {
    const { combo, route, dtype, clip } = this.kind
    const { value: name, options } = this.find(combo)
    if (this.node.inputs?.some((input) => input.widget?.name === combo && input.link != null)) {
      return this.say({ lines: ['The file is named by another node.'] }, '')
    }
    const names = typeof options.values === 'function' ? options.values(this.find(combo), this.node) : options.values
    if (!names.includes(name)) return this.say({ error: notListed(name) }, '')
    const query = new URLSearchParams({
      name, ...(dtype && { weight_dtype: this.find(dtype).value }), ...(clip && clipFor(this.node, targets, origins)),
    })
    const question = `${route}?${query}`
    if (question === this.asked) return
    this.asked = question
    const answer = await this.fetch(question)
    if (question === this.asked) this.say(answer, question) // else another question was asked meanwhile
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
    this.text.replaceChildren(...(lines ?? [error]).map((line, number) => {
      const row = element('div', error ? { color: ERROR_COLOR } : { fontWeight: number ? 'normal' : 'bold' })
      row.textContent = line // never as HTML: file names are anybody's
      return row
    }))
  }

  /** The node grows and shrinks with the text, as it does in Nodes 2.0 by itself. */
  fit() {
    const height = Math.max(this.text.offsetHeight, this.kind.lines * LINE)
    if (LiteGraph.vueNodesMode || !this.text.offsetHeight || height === this.height) return // 0: not on the page
    const [width, before] = this.node.size
    const spare = before - this.node.computeSize()[1]
    this.height = height
    this.node.setSize([width, this.node.computeSize()[1] + Math.max(spare, 0)])
    this.node.setDirtyCanvas(true, true)
  }
}

const refreshAll = (anew) => panels.forEach((panel) => panel.refresh(anew))

api.addEventListener('graphChanged', () => refreshAll(false)) // a clip's size, or a link to it

app.registerExtension({
  name: 'TemporalUNet.InfoPanels',
  nodeCreated(node) {
    const kind = NODES[node.constructor.comfyClass]
    if (!kind) return
    const panel = new InfoPanel(node, kind)
    panels.set(node, panel)
    const { onConfigure, onRemoved } = node
    node.onConfigure = function (...args) {
      panel.refresh()
      return onConfigure?.apply(this, args)
    }
    node.onRemoved = function (...args) {
      panels.delete(node)
      return onRemoved?.apply(this, args)
    }
    panel.refresh()
  },
  afterConfigureGraph: () => refreshAll(false),
  refreshComboInNodes: () => refreshAll(true),
})
