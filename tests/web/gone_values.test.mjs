import assert from 'node:assert/strict'
import { test } from 'node:test'

import { hasChanged, withoutGone } from '../../web/js/core/gone_values.js'

const SAMPLER = 'TemporalUNetSVDSampler'
const BEFORE = [0, 'fixed', 20, 1, 2.5, 'linear', 'euler', 'karras', 1, '0:1.0, 1:2.5', 0, 1, 0, 6, true]
const inputs = (link) => [{ name: 'closed_loop', link: null }, { name: 'window_noise', link }, { name: 'keep_colors', link: null }]

test('window_noise and its unlinked input are left out, so that keep_colors gets its own value', () => {
  for (const noise of ['independent', 'shuffled']) {
    for (const keep of [true, false]) {
      const saved = { id: 1, widgets_values: [...BEFORE, noise, keep], inputs: inputs(null) }
      const { id, widgets_values, inputs: left } = withoutGone(SAMPLER, saved)
      assert.deepEqual([id, widgets_values], [1, [...BEFORE, keep]])
      assert.deepEqual(left.map(({ name }) => name), ['closed_loop', 'keep_colors'])
      assert.equal(saved.widgets_values.length, 17, 'what was given is left as it was')
    }
  }
})

test('a link to window_noise stays, because the links of a saved workflow name inputs', () => {
  const saved = { widgets_values: [...BEFORE, 'shuffled', true], inputs: inputs(7) }
  assert.deepEqual(withoutGone(SAMPLER, saved).inputs, inputs(7))
})

test('workflows of this version, and odd ones, are left as they are', () => {
  for (const values of [[...BEFORE, true], [...BEFORE, false], BEFORE, [], undefined, null, 'independent', { 15: 'shuffled' }]) {
    const saved = { widgets_values: values, inputs: inputs(null) }
    assert.equal(withoutGone(SAMPLER, saved), saved)
  }
  assert.equal(withoutGone(SAMPLER, { widgets_values: [...BEFORE, 'shuffled', true] }).inputs, undefined)
})

const SEEDED = {
  TemporalUNetSVDConditioning: [[1024, 576, 14, 127, 6, 0.1, 42], ['pad']],
  TemporalUNetContinueVideo: [[14, 127, 6, 0.1, 42], [false]],
  TemporalUNetComputeControlNetResiduals: [[0.2, 42], []]
}

test('the control after a seed that has none any more is left out, and nothing else', () => {
  for (const [type, [before, after]] of Object.entries(SEEDED)) {
    assert.ok(hasChanged(type))
    const slots = [{ name: 'seed', link: 3 }, { name: 'vae', link: null }]
    for (const control of ['fixed', 'increment', 'decrement', 'randomize']) {
      const opened = withoutGone(type, { widgets_values: [...before, control, ...after], inputs: slots })
      assert.deepEqual(opened, { widgets_values: [...before, ...after], inputs: slots })
    }
    const saved = { widgets_values: [...before, ...after], inputs: slots }
    assert.equal(withoutGone(type, saved), saved)
  }
  assert.ok(!hasChanged('TemporalUNetJoinVideo') && !hasChanged('KSampler'))
})
