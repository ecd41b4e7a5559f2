// Which inputs of the sampler are shown.

import assert from 'node:assert/strict'
import test from 'node:test'

import { actsByItself, curveActs, isFromBefore } from '../../web/js/core/taken_over.js'

test('an input that Video Options has taken over is shown where it acts: with another value than usual, or a link', () => {
  assert.deepEqual([actsByItself(0, 0, false), actsByItself(14, 0, false), actsByItself(0, 0, true)], [false, true, true])
})

test('a curve is shown where it guides, or where a link may make it guide', () => {
  const shown = [['curve', false, false], ['linear', true, false], ['linear', false, true], ['linear', false, false]]
  assert.deepEqual(shown.map((state) => curveActs(...state)), [true, true, true, false])
})

test('a sampler without the input of Video Options is from before that node', () => {
  assert.deepEqual([{}, { inputs: [{ name: 'model' }] }, { inputs: [{ name: 'options' }] }].map(isFromBefore), [true, true, false])
})
