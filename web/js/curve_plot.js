// The plot of a curve in SVG: axes, the line, and points that are dragged, added and deleted by mouse and keyboard.

import { addPoint, axisOf, movePoint, removePoint, roundTo, thin, valueAt } from './core/curve_text.js'
import { t } from './texts.js'

const MARGIN = { left: 34, right: 12, top: 9, bottom: 19 } // for the labels, in pixels
const GAP = 6 // between a value's label and the plot
const LABEL = MARGIN.left - GAP - 2 // the most that a value's label is wide
const STICKY = 3 // pixels that a drag must go sideways to change the position, and up or down to change the value
export const MOST_POINTS = 64 // a curve with more is drawn, and edited as text
const TIMES = [
  // position, key of its label where it is not in percent, its anchor, the least width at which there is room for it
  [0, 'curve.first', 'start', 0],
  [0.25, null, 'middle', 280],
  [0.5, null, 'middle', 160],
  [0.75, null, 'middle', 280],
  [1, 'curve.last', 'end', 0]
]
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] } // in units, with shift in tens

function svg(name, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  element.append(...children)
  return element
}

const percent = (position) => `${Number((position * 100).toPrecision(6))} %`
const short = (value) => String(Number(value.toPrecision(4)))

/** A number next to the axis: a long one with an exponent where that is shorter. */
function tickLabel(value) {
  const plain = short(value)
  const exponential = Number(plain).toExponential().replace('e+', 'e')
  return plain.length > 6 && exponential.length < plain.length ? exponential : plain
}

/**
 * `element` is the plot. `edited(points)` is called on each change, `committed()` at the end of each gesture, `pointed(text)` with
 * what the pointer or the focus is on (null: nothing).
 */
export class CurvePlot {
  constructor({ edited, committed, pointed }) {
    Object.assign(this, { edited, committed, pointed })
    this.points = []
    this.drag = null // {index, from: [x, y] of the pointer, start and axis: the point and the axis then, freed: [x, y], changed}
    this.added = { index: -1, time: 0 } // by a click on the line: the double click that it begins must not delete it again
    this.grid = svg('g', { class: 'grid' })
    this.area = svg('path', { class: 'area' })
    this.line = svg('path', { class: 'line' })
    this.grip = svg('path', { class: 'grip' }) // the line again, unseen and wide enough to be hit
    this.handles = svg('g', {})
    this.svg = svg('svg', {}, this.grid, this.area, this.line, this.grip, this.handles)
    this.element = document.createElement('div')
    this.element.className = 'plot'
    this.element.append(this.svg)
    this.listen()
  }

  /** Draws `points` (none: only the grid); `locked` ones are only looked at. */
  show(points, locked) {
    this.points = points
    this.locked = locked || points.length > MOST_POINTS
    this.axis = axisOf(points)
    const before = this.drag?.axis // stays, but for a value above it
    if (before && points.every(([, value]) => value <= before.high)) this.axis = before
    this.draw()
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.element
    if (!width || !this.axis) return // not on the page: drawn when it is
    const { left, right, top, bottom } = MARGIN
    Object.assign(this, { left, top, width: width - left - right, height: height - top - bottom })
    this.drawGrid()
    const corners = thin(this.points, this.width).map((point) => this.place(point))
    if (corners.length) (corners.unshift([left, corners[0][1]]), corners.push([left + this.width, corners.at(-1)[1]]))
    const path = corners.map(([x, y], i) => `${i ? 'L' : 'M'}${x} ${y}`).join('')
    const base = this.place([0, Math.max(this.axis.low, 0)])[1]
    this.line.setAttribute('d', path)
    this.grip.setAttribute('d', path)
    this.area.setAttribute('d', path && `${path}L${left + this.width} ${base}L${left} ${base}Z`)
    this.drawHandles()
  }

  drawGrid() {
    const { left, top, width, height } = this
    const label = (x, y, anchor, text) => svg('text', { x, y, 'text-anchor': anchor }, text)
    const rows = this.axis.ticks.flatMap((tick) => {
      const y = this.place([0, tick])[1]
      return [svg('line', { x1: left, x2: left + width, y1: y, y2: y }), label(left - GAP, y + 3.5, 'end', tickLabel(tick))]
    })
    const times = TIMES.filter(([, , , room]) => width >= room).map(([position, key, anchor]) =>
      label(left + position * width, top + height + 14, anchor, key ? t(key) : percent(position))
    )
    const columns = TIMES.map(([position]) => left + position * width).map((x) =>
      svg('line', { x1: x, x2: x, y1: top, y2: top + height })
    )
    this.grid.replaceChildren(...columns, ...times, ...rows)
    this.clear(times)
    for (const row of rows) {
      // squeezed where they are wider than the margin
      if (row.localName !== 'text' || row.getComputedTextLength() <= LABEL) continue
      row.setAttribute('textLength', LABEL)
      row.setAttribute('lengthAdjust', 'spacingAndGlyphs')
    }
  }

  /** Takes away labels of the time axis between the first and the last where these, long in some languages, reach them. */
  clear(labels) {
    const ends = [labels[0], labels.at(-1)].map((label) => label.getComputedTextLength())
    for (const label of labels.slice(1, -1)) {
      const [x, half] = [label.getAttribute('x') - this.left, label.getComputedTextLength() / 2 + GAP]
      if (x - half < ends[0] || x + half > this.width - ends[1]) label.remove()
    }
  }

  /** Handles are kept while their number stays, for the focus is on one of them. */
  drawHandles() {
    const shown = this.points.length > MOST_POINTS ? [] : this.points
    while (this.handles.children.length > shown.length) this.handles.lastChild.remove()
    while (this.handles.children.length < shown.length) {
      const circles = [svg('circle', { r: 11, class: 'hit' }), svg('circle', { r: 4.5 })]
      this.handles.append(svg('g', { class: 'handle', role: 'slider' }, ...circles))
    }
    for (const [index, point] of shown.entries()) {
      const handle = this.handles.children[index]
      const [x, y] = this.place(point)
      handle.setAttribute('transform', `translate(${x} ${y})`)
      handle.setAttribute('tabindex', this.locked ? -1 : 0)
      handle.setAttribute('aria-label', t('curve.point', { index: index + 1, count: shown.length }))
      handle.setAttribute('aria-valuetext', this.describe(point))
    }
    const focused = this.indexOf(document.activeElement)
    this.pointed(focused >= 0 ? this.describe(this.points[focused]) : null)
  }

  describe([position, value]) {
    return `${percent(position)} · ${short(value)}`
  }

  /** A point of the curve in pixels of the plot; values outside the axis lie on its edge. */
  place([position, value], { low, high } = this.axis) {
    const share = (Math.min(Math.max(value, low), high) - low) / (high - low)
    return [this.left + position * this.width, this.top + (1 - share) * this.height]
  }

  /** And back; only above the whole plot, which a drag can reach, the values go on beyond the axis. */
  pointAt(x, y, { low, high, unit } = this.axis) {
    const above = Math.max(-y, 0)
    const share = Math.min(Math.max(1 - (y - this.top) / this.height, 0), 1) + above / this.height
    return [(x - this.left) / this.width, roundTo(low + share * (high - low), unit)]
  }

  rounded(value) {
    return roundTo(value, this.axis.unit)
  }

  /** Where a mouse event is in the plot, whose pixels the host scales. */
  mouse(event) {
    const box = this.svg.getBoundingClientRect()
    const scale = this.element.clientWidth / box.width
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]
  }

  /** The index of the point that an element of the page belongs to, or -1. */
  indexOf(element) {
    return [...this.handles.children].findIndex((handle) => handle.contains(element))
  }

  focus(index) {
    this.handles.children[index]?.focus({ preventScroll: true })
  }

  listen() {
    const on = (type, handler) => this.svg.addEventListener(type, (event) => this.points.length && !this.locked && handler(event))
    on('pointerdown', (event) => event.button === 0 && this.press(event))
    on('pointermove', (event) => (this.drag ? this.pull(event) : this.hover(event)))
    on('dblclick', (event) => this.doubleClick(event))
    on('contextmenu', (event) => this.indexOf(event.target) >= 0 && this.remove(event, this.indexOf(event.target)))
    on('keydown', (event) => this.key(event))
    for (const type of ['pointerup', 'pointercancel']) this.svg.addEventListener(type, () => this.release())
    this.svg.addEventListener('pointerleave', () => this.pointed(null))
    this.element.addEventListener('focusout', () => this.pointed(null)) // not on the SVG: with it, a click would give it the focus
    this.element.addEventListener('focusin', (event) => {
      const index = this.indexOf(event.target)
      if (index >= 0) this.pointed(this.describe(this.points[index]))
    })
  }

  change(points) {
    this.drag && (this.drag.changed = true)
    this.edited(points)
  }

  press(event) {
    event.preventDefault() // of selecting the page's text
    let index = this.indexOf(event.target)
    const added = index < 0 && event.target === this.grip
    if (index !== this.added.index) this.added.index = -1
    if (added) {
      const found = addPoint(this.points, ...this.pointAt(...this.mouse(event)))
      index = found.index
      this.added = { index, time: event.timeStamp }
      if (found.points !== this.points) this.change(found.points)
    }
    if (index < 0) return
    this.focus(index)
    this.svg.setPointerCapture(event.pointerId)
    const { axis, points } = this
    this.drag = { index, from: this.mouse(event), start: points[index], axis, freed: [false, false], changed: added }
  }

  pull(event) {
    const { index, from, start, axis: before, freed } = this.drag
    const way = this.mouse(event).map((pixel, axis) => pixel - from[axis])
    const place = this.place(start, before)
    const wanted = this.pointAt(place[0] + way[0], place[1] + way[1], before)
    for (const axis of [0, 1]) freed[axis] ||= Math.abs(way[axis]) >= STICKY
    const moved = start.map((old, axis) => (freed[axis] ? wanted[axis] : old))
    if (freed.includes(true)) this.change(movePoint(this.points, index, moved))
  }

  release() {
    const drag = this.drag
    this.drag = null
    if (drag?.changed) this.committed()
  }

  hover(event) {
    const index = this.indexOf(event.target)
    const position = Math.min(Math.max(this.pointAt(...this.mouse(event))[0], 0), 1)
    this.pointed(
      this.describe(index >= 0 ? this.points[index] : [Math.round(position * 100) / 100, valueAt(this.points, position)])
    )
  }

  doubleClick(event) {
    event.stopPropagation()
    const index = this.indexOf(document.elementFromPoint(event.clientX, event.clientY)) // the target is what captured the pointer
    const fresh = index === this.added.index && event.timeStamp - this.added.time < 600
    if (index >= 0) return fresh || this.remove(event, index)
    const found = addPoint(this.points, ...this.pointAt(...this.mouse(event)))
    this.change(found.points)
    this.committed()
    this.focus(found.index)
  }

  remove(event, index) {
    event.preventDefault()
    event.stopPropagation()
    this.drag = null
    const points = removePoint(this.points, index)
    if (points === this.points) return
    this.change(points)
    this.committed()
    this.focus(Math.min(index, points.length - 1))
  }

  /** Keys that act on the focused point; the host does not see those: its Delete would take the node. */
  key(event) {
    const index = this.indexOf(event.target)
    if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return
    if (event.key === 'Delete' || event.key === 'Backspace') return this.remove(event, index)
    const direction = MOVES[event.key]
    if (!direction && event.key !== 'Insert') return
    event.preventDefault()
    event.stopPropagation()
    if (direction) return this.nudge(index, direction, event.shiftKey ? 10 : 1)
    this.insertAfter(index)
  }

  nudge(index, [right, up], units) {
    const [position, value] = this.points[index]
    const least = Math.min(value, 0) // no key makes a value negative
    const raised = this.rounded(Math.max(this.rounded(value) + up * units * this.axis.unit, least))
    this.change(movePoint(this.points, index, [right ? position + right * units * 0.01 : position, up ? raised : value]))
    this.committed()
  }

  /** A new point half-way to the next one or to the end, from a last one at the end half-way back. */
  insertAfter(index) {
    const [from] = this.points[index]
    const to = this.points[index + 1]?.[0] ?? (from < 1 ? 1 : (this.points[index - 1]?.[0] ?? 0))
    const position = (from + to) / 2
    const found = addPoint(this.points, position, this.rounded(valueAt(this.points, position)))
    this.change(found.points)
    this.committed()
    this.focus(found.index)
  }
}
