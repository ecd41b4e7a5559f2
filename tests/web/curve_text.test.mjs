// Curves as text and the edits of the curve editor. tests/host/test_curve.py tests Python with the same cases.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { wordsOf } from '../../web/js/core/catalog.js'
import {
  addPoint, applyPreset, axisOf, evaluateCurve, faultText, formatCurve, movePoint, preset, PRESETS, readCurve, removePoint, roundTo, thin
} from '../../web/js/core/curve_text.js'

const cases = JSON.parse(readFileSync(new URL('../curve_cases.json', import.meta.url), 'utf8'))
const { temporalUnet: en } = JSON.parse(readFileSync(new URL('../../locales/en/main.json', import.meta.url), 'utf8'))
const messageOf = (value, input) => faultText(readCurve(value).fault, input, (key, values = {}) => wordsOf({ en }, 'en', key, values))
const RISE = [[0, 1], [0.5, 3], [1, 2]]

for (const { text, points, values } of cases.good) {
  test(`reads and evaluates ${JSON.stringify(text)}`, () => {
    const read = readCurve(text)
    assert.deepEqual(read.points.map(([position, value]) => [position + 0, value]), points) // + 0: of -0
    const found = evaluateCurve(read.points, values.length)
    assert.equal(found.length, values.length)
    found.forEach((value, i) => assert.ok(Math.abs(value - values[i]) <= 1e-12, `${value} at ${i}, expected ${values[i]}`))
  })
}

for (const { text, error } of cases.bad) {
  test(`refuses ${JSON.stringify(text)} with the agreed words`, () => {
    assert.equal(messageOf(text, 'Node: input'), `Node: input: ${error}; ${cases.form}.`)
  })
}

test('what is written reads as the same points', () => {
  for (const points of [RISE, [[0.1, 1 / 3], [0.30000000000000004, -1e-7], [1, 1e4]]]) {
    assert.deepEqual(readCurve(formatCurve(points)).points, points)
  }
  assert.equal(formatCurve(RISE), '0:1, 0.5:3, 1:2')
})

test('a moved point stays between its neighbors and inside 0 to 1', () => {
  assert.deepEqual(movePoint(RISE, 1, [0.7, 4]), [[0, 1], [0.7, 4], [1, 2]])
  assert.deepEqual(movePoint(RISE, 1, [7, 4])[1], [0.99, 4])
  assert.deepEqual(movePoint(RISE, 1, [-7, 4])[1], [0.01, 4])
  assert.deepEqual(movePoint(RISE, 0, [-1, 1])[0], [0, 1])
  assert.deepEqual(movePoint(RISE, 2, [2, 2])[2], [1, 2])
  assert.deepEqual(RISE, [[0, 1], [0.5, 3], [1, 2]]) // the given ones are left alone
})

test('values that an edit makes stay where a curve may have them', () => {
  assert.deepEqual(movePoint(RISE, 1, [0.5, 12000])[1], [0.5, 10000])
  assert.deepEqual(addPoint(RISE, 0.75, -12000).points[2], [0.75, -10000])
})

test('a message quotes little of a long text', () => {
  for (const text of ['1'.repeat(20000), `0:1, ${'x'.repeat(20000)}`, `${'0:1, '.repeat(4000)}`, `0:${'9'.repeat(20000)}`]) {
    const message = messageOf(text, 'curve')
    assert.ok(message.length < 300, message)
  }
})

test('a value that is no text is no curve, and the message quotes what a workflow would save', () => {
  const odd = [
    [5, '5'], [null, 'null'], [true, 'true'], [['a'], '["a"]'], [['0:1', '1:2'], '["0:1"'], [{ toString: 1 }, '{"toString":1}']
  ]
  for (const [value, quoted] of odd) assert.ok(messageOf(value, 'curve').startsWith(`curve: found '${quoted}'`))
})

test('a curve of very many points is read, has an axis and takes a preset', () => {
  const count = 200_000 // more than a call takes arguments
  const text = Array.from({ length: count }, (_, i) => `${i / count}:${i % 7}`).join()
  const { points } = readCurve(text)
  assert.equal(points.length, count)
  assert.equal(axisOf(points).high, 8)
  assert.deepEqual(applyPreset('linear', points, [0, 1]), [[0, 0], [1, 6]])
})

test('no text takes long, whatever it repeats', () => {
  const many = 30_000
  const start = performance.now()
  for (const [before, repeated] of [['0:1', ' '], ['0:1, ', ' '], ['0:', '1_'], ['0:', '1']]) {
    assert.ok('fault' in readCurve(`${before}${repeated.repeat(many)}x`))
  }
  assert.ok(performance.now() - start < 1000)
  assert.ok('fault' in readCurve(`0:${'1_'.repeat(4_500_000)}x`)) // nor all of the stack
})

test('a thinned curve begins, ends and turns in each column of pixels as the whole one does', () => {
  const points = Array.from({ length: 5000 }, (_, i) => [i / 4999, (i * 7919) % 1000])
  const columns = 100
  const perColumn = (points) => Array.from({ length: columns + 1 }, (_, column) => {
    const inside = points.filter(([position]) => Math.floor(position * columns) === column)
    const values = inside.map(([, value]) => value)
    return [inside[0], inside.at(-1), Math.min(...values), Math.max(...values)]
  })
  const kept = thin(points, columns)
  assert.ok(kept.length <= 4 * (columns + 1))
  assert.deepEqual(perColumn(kept), perColumn(points))
  kept.forEach(([position], i) => assert.ok(!i || position > kept[i - 1][0]))
  assert.equal(thin(RISE, 1), RISE) // few are drawn as they are
})

test('end points are free to leave the ends', () => {
  assert.deepEqual(movePoint(RISE, 0, [0.2, 1])[0], [0.2, 1])
  assert.deepEqual(movePoint(RISE, 2, [0.8, 2])[2], [0.8, 2])
})

test('a position that only the text gives is kept while the value moves, and where neighbors leave no room', () => {
  const close = [[0.4999, 1], [0.5001, 2], [0.5003, 3]]
  assert.deepEqual(movePoint(close, 1, [0.5001, 5])[1], [0.5001, 5])
  assert.deepEqual(movePoint(close, 1, [0.9, 5])[1], [0.5001, 5])
})

test('positions rise after any edit', () => {
  let points = [[0, 1]]
  for (let i = 0; i < 300; i++) {
    const share = (i * 0.6180339887) % 1
    points = i % 3 ? movePoint(points, Math.floor(share * points.length), [share * 3 - 1, i]) : addPoint(points, share, i).points
    points.forEach(([position], at) => assert.ok(position >= 0 && position <= 1 && (!at || position > points[at - 1][0])))
    assert.deepEqual(readCurve(formatCurve(points)).points, points)
  }
  assert.ok(points.length > 20)
})

test('an added point takes its place in the order, and none comes on top of another', () => {
  assert.deepEqual(addPoint(RISE, 0.251, 9), { points: [[0, 1], [0.25, 9], [0.5, 3], [1, 2]], index: 1 })
  assert.deepEqual(addPoint([[0.5, 3]], 0.9, 9), { points: [[0.5, 3], [0.9, 9]], index: 1 })
  assert.deepEqual(addPoint(RISE, 0.5, 9), { points: RISE, index: 1 })
})

test('points are removed, but the last one stays', () => {
  assert.deepEqual(removePoint(RISE, 1), [[0, 1], [1, 2]])
  assert.deepEqual(removePoint([[0, 1]], 0), [[0, 1]])
})

test('presets run between the two values', () => {
  assert.deepEqual(preset('linear', 1, 2.5), [[0, 1], [1, 2.5]])
  assert.deepEqual(preset('triangle', 1, 2.5), [[0, 1], [0.5, 2.5], [1, 1]])
  assert.deepEqual(preset('ease', 0, 1), [[0, 0], [0.2, 0.104], [0.4, 0.352], [0.6, 0.648], [0.8, 0.896], [1, 1]])
  assert.deepEqual(preset('pulse', 0, 1), [[0, 0], [0.4, 0], [0.5, 1], [0.6, 0], [1, 0]])
})

test('a preset keeps the values that the curve spans, has its own where there are none, and turns over if repeated', () => {
  for (const name of PRESETS) {
    assert.deepEqual(applyPreset(name, [[0, 5], [1, 2]], [0, 1]), preset(name, 2, 5))
    assert.deepEqual(applyPreset(name, [[0, 7]], [0, 1]), preset(name, 0, 1))
    assert.deepEqual(applyPreset(name, undefined, [0, 1]), preset(name, 0, 1))
    assert.deepEqual(applyPreset(name, preset(name, 2, 5), [0, 1]), preset(name, 5, 2))
    assert.deepEqual(applyPreset(name, preset(name, 5, 2), [0, 1]), preset(name, 2, 5))
  }
})

test('the value axis holds the curve, with room above it and round labels', () => {
  const expected = [
    [[[0, 1], [1, 2.5]], [0, 1, 2, 3]], [[[0, 1]], [0, 0.5, 1, 1.5]], [[[0, 0]], [0, 0.5, 1, 1.5]], [[], [0, 0.5, 1, 1.5]],
    [[[0, -1], [1, 2]], [-2, -1, 0, 1, 2, 3]], [[[0, 100], [1, 101]], [0, 50, 100, 150]]
  ]
  for (const [points, ticks] of expected) assert.deepEqual(axisOf(points).ticks, ticks)
})

test('axis and presets are finite for every curve that Python takes', () => {
  for (const name of PRESETS) assert.ok(preset(name, -1e4, 1e4).flat().every(Number.isFinite))
  for (const [value, other] of [[1e4, -1e4], [-1e4, -1e4], [5e-324, -1e4], [5e-324, 0], [1e-300, 1e-300], [1e-299, 0], [0.1, 1234.5678]]) {
    const { low, high, ticks, unit } = axisOf([[0, value], [1, other]])
    assert.ok([low, high, unit, ...ticks].every(Number.isFinite) && low < high && unit > 0 && ticks.length < 9, `${value}`)
  }
})

test('values are rounded to what is written short', () => {
  assert.equal(roundTo(1.2345, 0.05), 1.25)
  assert.equal(roundTo(0.30000000000000004, 0.1), 0.3)
  assert.equal(roundTo(1234, 5), 1235)
  assert.equal(roundTo(-0.07, 0.05), -0.05)
})
