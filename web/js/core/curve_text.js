// Curves written as text, as nodes/bridge/inputs/curve.py reads them: `position:value` points, straight lines between them, flat beyond
// the ends. A point is [position 0..1, value -10000..10000]. Nothing here knows the page or the host.

import { textOf } from './text.js'

export const PRESETS = ['linear', 'triangle', 'ease', 'pulse']

const POSITION_UNIT = 0.01 // positions that an edit makes are multiples of it, and no two points are closer
const LARGEST = 10000 // of a value: beyond any use, and what it is multiplied with stays in the range of fp16
const QUOTED = 40 // characters of the text that a message quotes at most
const LEAST_SPAN = 1e-300 // of values that the axis shows apart
const ROOM = 0.15 // share of the curve's span that the axis goes beyond it

// Full-width signs too, as Chinese and Japanese keyboards write them.
const SEPARATOR = /[,，、；]/
const COLON = /[:：]/

// What Python takes as white space and as numbers; what it reads as infinite or NaN is a number, but not a point of a curve.
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/
const UNDERSCORE = /(?<=\d)_(?=\d)/g
const NUMBER = /^[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?$/i
const NOT_FINITE = /^[+-]?(?:nan|inf|infinity)$/i

const clamp = (value, low, high) => Math.min(Math.max(value, low), high)

/** The text without the white space at its ends. No regular expression: on long space inside the text it takes quadratic time. */
function strip(text) {
  let [start, end] = [0, text.length]
  while (start < end && SPACE.test(text[start])) start++
  while (start < end && SPACE.test(text[end - 1])) end--
  return text.slice(start, end)
}

/** The number that the text says, NaN where that is not finite, or null. */
function toNumber(text) {
  const plain = text.replace(UNDERSCORE, '')
  if (NUMBER.test(plain)) return Number(plain)
  return NOT_FINITE.test(text) ? NaN : null
}

function short(text) {
  const characters = Array.from(text)
  return characters.length <= QUOTED ? text : `${characters.slice(0, QUOTED - 1).join('')}…`
}

/** The text in quotes, as Python's repr writes it. */
function quoted(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'"
  const named = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t', [quote]: `\\${quote}` }
  const escape = (character) => {
    const code = character.codePointAt(0)
    const [letter, length] = code < 0x100 ? ['x', 2] : code < 0x10000 ? ['u', 4] : ['U', 8]
    return named[character] ?? `\\${letter}${code.toString(16).padStart(length, '0')}`
  }
  const plain = quote === "'" ? ' "' : " '"
  return quote + text.replace(/[\\'"\p{C}\p{Z}]/gu, (found) => (plain.includes(found) ? found : escape(found))) + quote
}

/**
 * {points} of a curve, or {fault}: what `faultText` words. A value that is no text, as a workflow may hold it, is quoted there as it
 * is saved.
 */
export function readCurve(value) {
  const text = textOf(value)
  const points = []
  const items = text.split(SEPARATOR)
  if (items.length > 1 && !strip(items.at(-1))) items.pop() // after a comma at the end
  let last = ''
  for (const item of items) {
    const colon = item.search(COLON)
    const [position, value] = [strip(item.slice(0, Math.max(colon, 0))), strip(item.slice(colon + 1))]
    const point = [toNumber(position), toNumber(value)]
    const values = { position: short(position), value: short(value), last: short(last), least: `-${LARGEST}`, most: `${LARGEST}` }
    let key
    if (item.includes(';')) key = 'semicolon'
    else if (colon < 0) key = 'noColon'
    else if (point[0] === null) key = 'positionIsNoNumber'
    else if (!(point[0] >= 0 && point[0] <= 1)) key = 'positionOutOfRange'
    else if (points.length && point[0] <= points.at(-1)[0]) key = 'positionDoesNotRise'
    else if (point[1] === null) key = 'valueIsNoNumber'
    else if (!(Math.abs(point[1]) <= LARGEST)) key = 'valueOutOfRange'
    if (key) {
      const [found, whole] = [strip(item), strip(text)]
      return { fault: { key, values, found: quoted(short(found)), whole: found === whole ? null : quoted(short(whole)) } }
    }
    points.push(point)
    last = position
  }
  return { points }
}

/** The message about a fault in the curve of an input, in English the one that Python gives; `t` as in texts.js. */
export function faultText({ key, values, found, whole }, input, t) {
  const parts = { input, found, whole, fault: t(`curve.faults.${key}`, values), form: t('curve.form') }
  return t(whole === null ? 'curve.fault' : 'curve.faultInText', parts)
}

export function formatCurve(points) {
  return points.map(([position, value]) => `${position}:${value}`).join(', ')
}

export function valueAt(points, position) {
  const next = points.findIndex(([p]) => p > position)
  if (next <= 0) return points.at(next)[1] // before the first point (0), or from the last one on (-1)
  const [[p0, v0], [p1, v1]] = points.slice(next - 1, next + 1)
  return ((position - p0) / (p1 - p0)) * (v1 - v0) + v0 // a slope may be infinite
}

/** The curve at `count` evenly spaced positions from 0 to 1; a single one lies at 0. */
export function evaluateCurve(points, count) {
  return Array.from({ length: count }, (_, i) => valueAt(points, count > 1 ? i / (count - 1) : 0))
}

/** Rounded to a multiple of `unit`, a power of ten or five times one. */
export function roundTo(value, unit) {
  return Number((Math.round(value / unit) * unit).toFixed(clamp(-Math.floor(Math.log10(unit)), 0, 100)))
}

/** The points with one moved: it stays between its neighbors, or where it is if they leave no room; the value in its range. */
export function movePoint(points, index, [position, value]) {
  const low = index > 0 ? points[index - 1][0] + POSITION_UNIT : 0
  const high = index < points.length - 1 ? points[index + 1][0] - POSITION_UNIT : 1
  const old = points[index][0]
  const wanted = position === old ? old : roundTo(clamp(position, low, high), POSITION_UNIT)
  const fits = (index === 0 || wanted > points[index - 1][0]) && (index === points.length - 1 || wanted < points[index + 1][0])
  return points.with(index, [fits ? wanted : old, clamp(value, -LARGEST, LARGEST)])
}

/** {points, index} with a new point at `index`; where one is already at that position, the points as they were and its index. */
export function addPoint(points, position, value) {
  const rounded = roundTo(clamp(position, 0, 1), POSITION_UNIT)
  const there = points.findIndex(([p]) => Math.abs(p - rounded) < POSITION_UNIT / 2)
  if (there >= 0) return { points, index: there }
  const index = points.filter(([p]) => p < rounded).length
  return { points: points.toSpliced(index, 0, [rounded, clamp(value, -LARGEST, LARGEST)]), index }
}

/** The points without one of them; the last that is left stays. */
export function removePoint(points, index) {
  return points.length > 1 ? points.toSpliced(index, 1) : points
}

/**
 * Points that draw the same line on a plot that is `columns` pixels wide: where there are many, the first, the lowest, the highest
 * and the last of each column.
 */
export function thin(points, columns) {
  if (points.length <= 4 * columns) return points
  const kept = []
  for (let start = 0, end; start < points.length; start = end) {
    const column = Math.floor(points[start][0] * columns)
    let [lowest, highest] = [start, start]
    for (end = start + 1; end < points.length && Math.floor(points[end][0] * columns) === column; end++) {
      if (points[end][1] < points[lowest][1]) lowest = end
      if (points[end][1] > points[highest][1]) highest = end
    }
    const indices = new Set([start, Math.min(lowest, highest), Math.max(lowest, highest), end - 1])
    for (const index of indices) kept.push(points[index])
  }
  return kept
}

/** [least, most] of the points' values and of the two given. A loop, as a call takes a limited number of arguments. */
function extent(points, least = Infinity, most = -Infinity) {
  for (const [, value] of points) {
    if (value < least) least = value
    if (value > most) most = value
  }
  return [least, most]
}

/** A named shape between two values. */
export function preset(name, low, high) {
  const round = (value) => Number(value.toPrecision(4))
  const shapes = {
    linear: [
      [0, 0],
      [1, 1]
    ],
    triangle: [
      [0, 0],
      [0.5, 1],
      [1, 0]
    ],
    ease: [0, 0.2, 0.4, 0.6, 0.8, 1].map((p) => [p, p * p * (3 - 2 * p)]), // smoothstep
    pulse: [
      [0, 0],
      [0.4, 0],
      [0.5, 1],
      [0.6, 0],
      [1, 0]
    ]
  }
  return shapes[name].map(([position, share]) => [position, round(low * (1 - share) + high * share)])
}

/**
 * A preset over the values that the curve spans now, or over `span` [low, high] where it is flat or there is none; the one that
 * it already is, turned over.
 */
export function applyPreset(name, points, span) {
  const [least, most] = extent(points ?? [])
  const [low, high] = least < most ? [least, most] : span
  const shape = preset(name, low, high)
  const isThere = points?.length === shape.length && formatCurve(shape) === formatCurve(points)
  return isThere ? preset(name, high, low) : shape
}

/** The value axis: from `low` to `high` with room to draw beyond the curve; `unit` is what an edit's values are rounded to. */
export function axisOf(points) {
  const [least, most] = extent(points, 0, 0)
  const span = most - least > LEAST_SPAN ? most - least : 1
  const step = atLeast((span * (1 + ROOM)) / 4, [1, 2, 5])
  const low = least < 0 ? Math.floor((least - span * ROOM) / step) : 0
  const high = least < 0 && most === 0 ? 0 : Math.ceil((least + span * (1 + ROOM)) / step)
  const ticks = Array.from({ length: high - low + 1 }, (_, i) => Number(((low + i) * step).toPrecision(12)))
  return { low: ticks[0], high: ticks.at(-1), ticks, unit: atLeast((ticks.at(-1) - ticks[0]) / 120, [1, 5]) }
}

/** The least of `factors` times a power of ten that is not below `value`. */
function atLeast(value, factors) {
  const power = 10 ** Math.floor(Math.log10(value))
  const found = [...factors, 10].find((factor) => factor * power >= value * (1 - 1e-9))
  return Number((found * power).toPrecision(1))
}
