// Which clip an info panel asks about.

import assert from 'node:assert/strict'
import test from 'node:test'

import { USUAL_CLIP, clipFor, clipOf, notListed } from '../../web/js/core/info.js'

const clipWidgets = (width, height, frames) => [
  { name: 'width', value: width }, { name: 'height', value: height }, { name: 'video_frames', value: frames },
  { name: 'fps', value: 6 },
]

/** Nodes from links [[from, to], …], by name; and the two functions that a graph gives. */
function graph(links, widgets) {
  const nodes = {}
  for (const name of links.flat()) nodes[name] ??= { name, widgets: widgets[name] }
  const other = (own, far) => (node) => links.filter((link) => link[own] === node.name).map((link) => nodes[link[far]])
  return { nodes, targets: other(0, 1), origins: other(1, 0) }
}

test('a node with width, height and video_frames describes a clip', () => {
  assert.deepEqual(clipOf(clipWidgets(512, 320, 25)), { width: 512, height: 320, frames: 25 })
  assert.equal(clipOf(clipWidgets(512, 320, undefined)), null)
  assert.equal(clipOf([{ name: 'width', value: 512 }, { name: 'height', value: 512 }]), null)
  assert.equal(clipOf(undefined), null)
})

test('the clip is that of the node that feeds the sampler of this model', () => {
  const { nodes, targets, origins } = graph(
    [
      ['loader', 'lora'], ['lora', 'sampler'], ['clip', 'control'], ['control', 'sampler'], ['loader2', 'sampler2'],
      ['clip2', 'sampler2'],
    ],
    { clip: clipWidgets(512, 320, 25), clip2: clipWidgets(64, 64, 3) },
  )
  assert.deepEqual(clipFor(nodes.loader, targets, origins), { width: 512, height: 320, frames: 25 })
  assert.deepEqual(clipFor(nodes.loader2, targets, origins), { width: 64, height: 64, frames: 3 })
})

test('without such a node it is the clip that SVD was trained on', () => {
  const { nodes, targets, origins } = graph([['loader', 'sampler'], ['latent', 'sampler']], {})
  assert.deepEqual(clipFor(nodes.loader, targets, origins), USUAL_CLIP)
  assert.deepEqual(USUAL_CLIP, { width: 1024, height: 576, frames: 14 })
})

test('a graph that runs in a circle comes to an end', () => {
  const { nodes, targets, origins } = graph([['loader', 'a'], ['a', 'b'], ['b', 'a']], {})
  assert.deepEqual(clipFor(nodes.loader, targets, origins), USUAL_CLIP)
})

test('a name that the server does not list is told as it is', () => {
  assert.ok(notListed('../<b>x</b>').startsWith('../<b>x</b> is not among'))
  assert.equal(notListed(undefined), 'No file is there to choose.')
})
