// The moving preview's times, places and text.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test from 'node:test'

import { wordsOf } from '../../web/js/core/catalog.js'
import {
  caption, cellOf, cornerOf, frameAt, frameUnder, hasImage, imageHeight, readEvent, spansOf, timeOf,
} from '../../web/js/core/preview_frames.js'

const english = JSON.parse(readFileSync(new URL('../../locales/en/main.json', import.meta.url))).temporalUnet
const t = (key, values) => wordsOf({ en: english }, 'en', key, values, key)

test('a clip of 4 frames at 5 frames a second begins again after 0.8 s', () => {
  const times = [0, 0.19, 0.21, 0.41, 0.61, 0.79, 0.81, 8.05]
  assert.deepEqual(times.map((time) => frameAt(time, 5, 4)), [0, 0, 1, 2, 3, 3, 0, 0])
})

test('a clip of one frame stands still', () => {
  assert.deepEqual([0, 0.5, 100].map((time) => frameAt(time, 24, 1)), [0, 0, 0])
})

test('play goes on from the frame that was chosen, at any rate', () => {
  for (const fps of [1, 6, 7.5, 24, 1000]) {
    for (let frame = 0; frame < 25; frame++) assert.equal(frameAt(timeOf(frame, fps), fps, 25), frame)
  }
})

test('each frame has its cell, and one that is left out has that of the frame before', () => {
  assert.deepEqual([0, 1, 2, 3].map((frame) => cellOf(frame, [0, 1, 2, 3])), [0, 1, 2, 3])
  assert.deepEqual([0, 1, 2, 3, 4, 5, 6, 7].map((frame) => cellOf(frame, [0, 3, 6])), [0, 0, 0, 1, 1, 1, 2, 2])
})

test('cells lie row by row', () => {
  const sheet = { columns: 3, width: 128, height: 72 }
  assert.deepEqual([0, 2, 3, 7].map((cell) => cornerOf(cell, sheet)), [[0, 0], [256, 0], [0, 72], [128, 144]])
})

test('the pointer chooses from the first frame at the left edge to the last at the right, and beyond the edges too', () => {
  assert.deepEqual([100, 124, 126, 150, 199, 200, 50, 900].map((x) => frameUnder(x, 100, 100, 4)), [0, 0, 1, 2, 3, 3, 0, 3])
})

test('a window is one section of the clip, or two where it wraps from the end to the start', () => {
  assert.deepEqual(spansOf([0, 9], 10), [[0, 1]])
  assert.deepEqual(spansOf([2, 5], 8), [[0.25, 0.75]])
  assert.deepEqual(spansOf([6, 1], 8), [[0.75, 1], [0, 0.25]])
})

test('the text shows the step, the window, the chosen frame, and how it ended', () => {
  const run = { step: 7, steps: 20, frames: 100, ended: '' }
  assert.equal(caption(run, t), 'step 7 of 20')
  assert.equal(caption({ ...run, window: [14, 38] }, t), 'step 7 of 20, frames 15 to 39 of 100')
  assert.equal(caption({ ...run, window: [94, 1] }, t), 'step 7 of 20, frames 95 to 100 and 1 to 2 of 100')
  assert.equal(caption({ ...run, window: [99, 0] }, t), 'step 7 of 20, frames 100 to 100 and 1 to 1 of 100')
  assert.equal(caption({ ...run, window: [14, 14] }, t), 'step 7 of 20, frame 15 of 100')
  assert.equal(caption({ ...run, window: [14, 38], atWork: [3, 4] }, t), 'step 7 of 20, 3 of 4 devices at work')
  assert.equal(caption({ ...run, window: [14, 38], frame: 0 }, t), 'frame 1 of 100')
  assert.equal(caption({ ...run, ended: 'stopped' }, t), 'stopped at step 7 of 20')
  assert.equal(caption({ ...run, ended: 'done' }, t), 'done: 100 frames, 20 steps')
  assert.equal(caption({ frames: 100, ended: 'done' }, t), 'done: 100 frames')
})

test('of several takes the text also shows which one, or that all are shown', () => {
  const run = { step: 7, steps: 60, frames: 25, ended: '', take: 2, takes: 3, seed: '18446744073709551615' }
  assert.equal(caption(run, t), 'take 2 of 3 (seed 18446744073709551615), step 7 of 60')
  assert.equal(caption({ frames: 25, ended: 'done', take: 2, takes: 3 }, t), 'take 2 of 3, done: 25 frames')
  assert.equal(caption({ frames: 25, steps: 60, ended: 'done', takes: 3 }, t), '3 takes, done: 25 frames, 60 steps')
})

test('only an image in the event itself is taken', () => {
  assert.ok(hasImage({ image: 'data:image/jpeg;base64,AAAA' }))
  for (const image of [undefined, null, 7, '', 'https://example.org/a.jpg', 'data:text/html,<b>', 'javascript:0']) {
    assert.ok(!hasImage({ image }), String(image))
  }
})

const STEP = { node_id: '7:2', prompt_id: 'p', fps: 7.5, step: 1, steps: 2, frames: 3 }
const SHEET = { ...STEP, image: 'data:image/jpeg;base64,AAAA', shown: [0, 2], columns: 2, rows: 1, width: 128, height: 72 }

const DECODED = { ...SHEET, step: undefined, steps: undefined, decoded: true }

test('an event of the form that the server sends is taken as it is', () => {
  const takes = [{ ...STEP, take: 2, takes: 2, seed: '7' }, { ...DECODED, takes: 2 }]
  for (const event of [DECODED, STEP, SHEET, ...takes, { ...STEP, window: [1, 2] }, { ...STEP, window: [2, 0], at_work: [3, 4] }, { ...STEP, window: undefined }]) {
    assert.equal(readEvent(event), event)
  }
})

test('an event of any other form is none', () => {
  const odd = [null, NaN, Infinity, -1, 1.5, 1e308, '', 'x', '__proto__', [], [1], [1, '2'], [0, 3], [-1, 0], [0, 1, 2], {}, true]
  for (const data of [undefined, ...odd]) assert.equal(readEvent(data), null)
  const fits = { fps: [1.5, 1e308], node_id: ['', 'x', '__proto__'], prompt_id: ['', 'x', '__proto__'], shown: [[1], [0, 1, 2]] }
  for (const key of Object.keys({ ...SHEET, window: undefined })) {
    for (const value of odd.filter((value) => !fits[key]?.some((fit) => String(fit) === String(value)))) {
      assert.equal(readEvent({ ...SHEET, [key]: value }), null, `${key}: ${JSON.stringify(value)}`)
    }
  }
  for (const more of [{ decoded: false }, { decoded: 'yes' }, { decoded: null }, { image: undefined }, { width: 1025 }]) {
    assert.equal(readEvent({ ...DECODED, ...more }), null, JSON.stringify(more))
  }
  for (const more of [{ width: 1025 }, { take: 3, takes: 2 }, { take: 1 }, { takes: 0 }, { takes: 2, take: 1, seed: 7 }]) {
    assert.equal(readEvent({ ...SHEET, ...more }), null, JSON.stringify(more))
  }
})

test('the image is as high as its shape asks, but neither tiny nor endless', () => {
  assert.equal(imageHeight(320, { width: 128, height: 72 }), 180)
  assert.equal(imageHeight(320, { width: 72, height: 128 }), 260)
  assert.equal(imageHeight(100, { width: 128, height: 72 }), 96)
})
