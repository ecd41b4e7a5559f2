import assert from 'node:assert/strict'
import { test } from 'node:test'

import { withoutWindowNoise } from '../../web/js/core/old_workflows.js'

const BEFORE = [0, 'fixed', 20, 1, 2.5, 'linear', 'euler', 'karras', 1, '0:1.0, 1:2.5', 0, 1, 0, 6, true]
const inputs = (link) => [{ name: 'closed_loop', link: null }, { name: 'window_noise', link }, { name: 'keep_colors', link: null }]

test('window_noise and its unlinked input are left out, so that keep_colors gets its own value', () => {
  for (const noise of ['independent', 'shuffled']) {
    for (const keep of [true, false]) {
      const saved = { id: 1, widgets_values: [...BEFORE, noise, keep], inputs: inputs(null) }
      const { id, widgets_values, inputs: left } = withoutWindowNoise(saved)
      assert.deepEqual([id, widgets_values], [1, [...BEFORE, keep]])
      assert.deepEqual(left.map(({ name }) => name), ['closed_loop', 'keep_colors'])
      assert.equal(saved.widgets_values.length, 17, 'what was given is left as it was')
    }
  }
})

test('a link to window_noise stays, because the links of a saved workflow name inputs', () => {
  const saved = { widgets_values: [...BEFORE, 'shuffled', true], inputs: inputs(7) }
  assert.deepEqual(withoutWindowNoise(saved).inputs, inputs(7))
})

test('workflows of this version, and odd ones, are left as they are', () => {
  for (const values of [[...BEFORE, true], [...BEFORE, false], BEFORE, [], undefined, null, 'independent', { 15: 'shuffled' }]) {
    const saved = { widgets_values: values, inputs: inputs(null) }
    assert.equal(withoutWindowNoise(saved), saved)
  }
  assert.equal(withoutWindowNoise({ widgets_values: [...BEFORE, 'shuffled', true] }).inputs, undefined)
})
