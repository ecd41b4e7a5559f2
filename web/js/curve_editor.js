// Draws the curve of a text input below the node's widgets, and edits it there. The text stays what is saved and sent.

import { app } from '../../../scripts/app.js'
import { applyPreset, faultText, formatCurve, preset, PRESETS, readCurve } from './core/curve_text.js'
import { CurvePlot, MOST_POINTS } from './curve_plot.js'
import { t } from './texts.js'
import { addWidget, growNode, instancesOf, setShown } from './widget.js'

const CURVES = {
  TemporalUNetSVDSampler: {
    input: 'guidance_curve',
    span: [1, 2.5], // of the presets, where the curve has no span of its own
    shownFor: ['guidance', 'curve'] // only while this other input has this value
  },
  TemporalUNetApplyControlNetResiduals: {
    input: 'frame_strengths',
    span: [0, 1]
  }
}
const HEIGHT = 150

let unfocused = null // {node, point, time} of the focus that the host's undo takes away, as it creates every node again

function html(tag, className, text = '') {
  const element = document.createElement(tag)
  element.className = className
  element.textContent = text
  return element
}

/** Calls `after` once the object's own method, if it has one, has run. */
function chain(object, method, after) {
  const original = object[method]
  object[method] = function (...args) {
    const result = original?.apply(this, args)
    after()
    return result
  }
}

function inputOf(node, name) {
  return node.inputs.find((input) => input.widget?.name === name)
}

/**
 * Where the value of a node's input is set: {node, widget}, of the node itself or of the only subgraph node that the input was
 * promoted to. {locked: why} where a link gives it, or several such nodes do: theirs are `values`.
 */
function sourceOf(node, name) {
  const link = node.graph?.getLink(inputOf(node, name)?.link)
  if (!link) return { node, widget: node.widgets.find((widget) => widget.name === name) }
  if (!link.originIsIoNode) return { locked: t('curve.linked') }
  const outer = node.graph.inputs[link.origin_slot].name
  const sources = instancesOf(node.graph).map((instance) => sourceOf(instance, outer))
  if (sources.length === 1) return sources[0]
  return { locked: t('curve.several'), values: sources.map(({ widget }) => widget?.value) }
}

class CurveEditor {
  constructor(node, curve, text) {
    Object.assign(this, { node, curve, text })
    this.plot = new CurvePlot({
      edited: (points) => this.write(formatCurve(points)),
      committed: () => this.commit(),
      pointed: (what) => this.describe(what)
    })
    this.readout = html('span', 'readout')
    this.message = html('div', 'message')
    this.buttons = PRESETS.map((name) => this.button(name))
    const bar = html('div', 'bar')
    bar.append(...this.buttons, this.readout)
    this.plot.element.append(this.message)
    this.element = html('div', 'temporal-unet-curve')
    this.element.append(bar, this.plot.element)
    this.element.setAttribute('role', 'group')
    this.element.setAttribute('aria-label', curve.input)
    this.listen()
    this.refresh()
  }

  button(name) {
    const button = html('button', 'preset')
    button.type = 'button'
    button.title = t(`curve.presets.${name}`)
    button.setAttribute('aria-label', button.title)
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
    svg.setAttribute('viewBox', '0 0 18 12')
    const line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline')
    line.setAttribute(
      'points',
      preset(name, 10, 2)
        .map(([x, y]) => `${1 + 16 * x},${y}`)
        .join(' ')
    )
    svg.append(line)
    button.append(svg)
    button.addEventListener('click', () => {
      this.write(formatCurve(applyPreset(name, this.read().points, this.curve.span)))
      this.commit()
    })
    return button
  }

  listen() {
    const { node, text, curve } = this
    const refresh = () => this.refresh()
    chain(text, 'callback', refresh)
    chain(node, 'onConfigure', refresh)
    chain(node, 'onConnectionsChange', refresh)
    const condition = curve.shownFor && node.widgets.find((widget) => widget.name === curve.shownFor[0])
    if (condition) chain(condition, 'callback', refresh)
    new ResizeObserver(() => this.appear()).observe(this.plot.element)
    this.element.addEventListener('pointerenter', refresh) // whatever else has set the value
    this.element.addEventListener('keydown', (event) => this.key(event))
    this.passOn()
    const leave = (event) => {
      if (this.element.contains(event.target)) return
      document.removeEventListener('pointerdown', leave, true) // here: an element that is removed gets no focusout event
      if (this.element.contains(document.activeElement)) document.activeElement.blur()
    }
    this.element.addEventListener('focusin', () => document.addEventListener('pointerdown', leave, true))
  }

  /** The middle button moves the canvas, also here. */
  passOn() {
    const on = (type, middle, act) => this.element.addEventListener(type, (event) => middle(event) && act.call(app.canvas, event))
    on('pointerdown', (event) => event.button === 1, app.canvas.processMouseDown)
    on('pointermove', (event) => event.buttons & 4, app.canvas.processMouseMove)
    on('pointerup', (event) => event.button === 1, app.canvas.processMouseUp)
  }

  /** The host draws this element only when it shows it: on opening a workflow, entering a subgraph, unfolding the inputs. */
  appear() {
    this.refresh()
    if (unfocused?.node !== this.node.id || !this.plot.element.clientWidth) return
    if (performance.now() - unfocused.time < 2000) this.plot.focus(unfocused.point)
    unfocused = null
  }

  key(event) {
    if (['Delete', 'Backspace'].includes(event.key)) event.stopPropagation() // else the host would delete the node
    const undo = (event.ctrlKey || event.metaKey) && ['z', 'y'].includes(event.key.toLowerCase())
    if (undo) unfocused = { node: this.node.id, point: this.plot.indexOf(event.target), time: performance.now() }
  }

  /** {points} or {error} of the text; {locked: why} and what is known of the points where it cannot be edited here. */
  read() {
    const { widget, locked, values = [] } = sourceOf(this.node, this.curve.input)
    if (widget) return this.readOnce(widget.value)
    const known = new Set(values).size === 1 && values[0] !== undefined
    return { locked, ...(known && this.readOnce(values[0])) }
  }

  /** The curve of a value, which is read again only when it has changed: a long text takes time, and refreshes are many. */
  readOnce(value) {
    if (this.last?.value !== value) this.last = { value, curve: readCurve(value) }
    const { points, fault } = this.last.curve
    return fault ? { error: faultText(fault, this.name, t) } : { points }
  }

  /** The node and the input, for messages. */
  get name() {
    return `${this.node.title}: ${this.curve.input}`
  }

  /** Never throws: an error here ends the host's loading of the workflow, and every later start, which loads it again. */
  refresh() {
    try {
      this.showOrHide()
      this.show(this.read())
    } catch (fault) {
      console.error(fault)
      const error = t('curve.cannotDraw', { input: this.name, reason: fault.message })
      this.show({ error, locked: error })
    }
  }

  show({ points = [], error = '', locked }) {
    this.element.classList.toggle('locked', Boolean(locked))
    this.element.classList.toggle('invalid', Boolean(error))
    this.element.classList.toggle('empty', !points.length)
    for (const button of this.buttons) button.disabled = Boolean(locked)
    this.message.textContent = error || (points.length ? '' : (locked ?? ''))
    this.message.title = error
    this.hint = points.length > MOST_POINTS ? t('curve.many', { count: points.length }) : (locked ?? t('curve.hint'))
    this.plot.show(points, Boolean(locked))
  }

  /** What the pointer is on, or else what can be done. */
  describe(what) {
    this.readout.textContent = what ?? (this.message.textContent ? '' : this.hint)
  }

  showOrHide() {
    if (!this.curve.shownFor || !this.widget) return
    const [name, value] = this.curve.shownFor
    const condition = this.node.widgets.find((widget) => widget.name === name)
    const shown = condition.value === value || inputOf(this.node, name)?.link != null
    setShown(this.node, this.widget, shown, HEIGHT)
  }

  write(text) {
    const { node, widget } = sourceOf(this.node, this.curve.input)
    const old = widget.value
    if (text === old) return
    widget.value = text
    widget.callback?.(text)
    node.onWidgetChanged?.(widget.name, text, old, widget)
    node.setDirtyCanvas(true, true)
    if (node !== this.node) this.refresh() // for its callback knows nothing of this
  }

  /** A step that the host's undo goes back to. */
  commit() {
    app.canvas.emitBeforeChange()
    app.canvas.emitAfterChange()
    this.refresh()
  }
}

function addEditor(node) {
  const curve = CURVES[node.comfyClass]
  if (!curve) return
  const text = node.widgets.find((widget) => widget.name === curve.input)
  const editor = new CurveEditor(node, curve, text)
  const heights = () => [LiteGraph.vueNodesMode ? 0 : HEIGHT] // Nodes 2.0 measures the element itself
  editor.widget = addWidget(node, `${curve.input}_editor`, 'TEMPORAL_UNET_CURVE', editor.element, heights)
  editor.widget.options.advanced = !curve.shownFor
  editor.refresh()
  growNode(node)
}

function addStyle() {
  const link = document.createElement('link')
  link.rel = 'stylesheet'
  link.href = new URL('curve_editor.css', import.meta.url).href
  document.head.append(link)
}

app.registerExtension({ name: 'TemporalUNet.CurveEditor', init: addStyle, nodeCreated: addEditor })
