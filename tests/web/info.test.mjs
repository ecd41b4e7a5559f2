// Which clip an info panel asks about.

import assert from 'node:assert/strict'
import test from 'node:test'

import { USUAL_CLIP, clipFor, clipOf, known, linesOf, noFile, notListed, valueOf, windowFor } from '../../web/js/core/info.js'

const clipWidgets = (width, height, frames) => [
  { name: 'width', value: width }, { name: 'height', value: height }, { name: 'video_frames', value: frames },
  { name: 'fps', value: 6 },
]
const FOLDERS = { 'checkpoints/': 'checkpoints', 'diffusion_models/': 'diffusion_models', '': 'diffusion_models' }

/** Nodes from links [[from, to], …], by name; and the two functions that a graph gives. */
function graph(links, widgets) {
  const nodes = {}
  for (const name of links.flat()) nodes[name] ??= { name, widgets: widgets[name] }
  const other = (own, far) => (node) => links.filter((link) => link[own] === node.name).map((link) => nodes[link[far]])
  return { nodes, targets: other(0, 1), origins: other(1, 0) }
}

test('a node with width, height and video_frames describes a clip', () => {
  assert.deepEqual(clipOf({ widgets: clipWidgets(512, 320, 25) }), { width: 512, height: 320, frames: 25 })
  assert.equal(clipOf({ widgets: clipWidgets(512, 320, undefined) }), null)
  assert.equal(clipOf({ widgets: [{ name: 'width', value: 512 }, { name: 'height', value: 512 }] }), null)
  assert.equal(clipOf({}), null)
})

/** A node whose video_frames is linked to `origin`. */
function linkedTo(origin) {
  const graph = { getLink: (id) => (id === 5 ? { origin_id: 1 } : undefined), getNodeById: (id) => (id === 1 ? origin : null) }
  return { graph, widgets: clipWidgets(512, 320, 14), inputs: [{ name: 'width', link: null }, { name: 'video_frames', link: 5 }] }
}

test('a linked value is that of the primitive or constant, and of any other node it is not known', () => {
  const widgets = [{ name: 'value', value: 40 }, { name: 'control_after_generate', value: 'fixed' }]
  for (const type of ['PrimitiveInt', 'PrimitiveNode', 'INTConstant']) {
    assert.deepEqual(clipOf(linkedTo({ type, mode: 0, widgets })), { width: 512, height: 320, frames: 40 })
  }
  for (const origin of [{ type: 'Multiply', mode: 0, widgets }, { type: 'PrimitiveInt', mode: 4, widgets }, null]) {
    assert.deepEqual(clipOf(linkedTo(origin)), { width: 512, height: 320, frames: null })
  }
})

test('in a subgraph a linked value is that on the subgraph node, where all of them agree', () => {
  const link = { originIsIoNode: true, origin_slot: 0 }
  const graph = { inputs: [{ name: 'frames' }], getLink: (id) => (id === 5 ? link : undefined) }
  const inside = { ...linkedTo(null), graph }
  const standsFor = (...values) => () => values.map((value) => ({ widgets: [{ name: 'frames', value }] }))
  assert.equal(valueOf(inside, 'video_frames', standsFor(40)), 40)
  assert.equal(valueOf(inside, 'video_frames', standsFor(40, 40)), 40)
  assert.equal(valueOf(inside, 'video_frames', standsFor(40, 14)), null)
  assert.equal(valueOf(inside, 'video_frames', () => []), null)
  assert.equal(valueOf(inside, 'video_frames', () => [{}]), null)
})

test('of primitives that are linked in a circle no value is known', () => {
  const nodes = {}
  const graph = { getLink: (id) => ({ origin_id: id }), getNodeById: (id) => nodes[id] }
  for (const [id, link] of [[1, 2], [2, 1]]) {
    const widgets = [{ name: 'value', value: 40 }]
    nodes[id] = { mode: 0, type: 'PrimitiveInt', graph, inputs: [{ name: 'value', link }], widgets }
  }
  assert.equal(valueOf(nodes[1], 'value', () => []), null)
})

test('of a link to no input of the subgraph no value is known', () => {
  const link = { originIsIoNode: true, origin_slot: 99 }
  const graph = { inputs: [{ name: 'frames' }], getLink: (id) => (id === 5 ? link : undefined) }
  const inside = { ...linkedTo(null), graph }
  assert.equal(valueOf(inside, 'video_frames', () => [{ widgets: [{ name: 'frames', value: 40 }] }]), null)
})

const line = (key) => ({ key, values: {}, text: key })

test('the lines of the server are found in the texts, and what the server says of memory is left out where the clip is not known', () => {
  const clip = { width: 512, height: null, frames: null }
  const answer = { lines: [line('family')], clip: { bytes: 2 ** 31, frames: 14, width: 512, height: 576, window: 8 } }
  assert.deepEqual(known(clip), { width: 512 })
  const family = { key: 'info.family', values: {}, text: 'family' }
  assert.deepEqual(linesOf(answer, clip), [family, { key: 'panel.clipUnknown', unknown: ['height', 'frames'] }])
  for (const asked of [clip, {}]) assert.deepEqual(linesOf({ lines: [line('family')] }, asked), [family]) // an image model, a ControlNet
})

test('the memory of a known clip is set against the device, and more than there is is warned of', () => {
  const clip = { bytes: 6e9, frames: 14, width: 512, height: 576, window: 14 }
  const lines = (device, more) => linesOf({ lines: [], clip: { ...clip, ...more }, device_bytes: device }, USUAL_CLIP)
  const values = { need: { bytes: 6e9 }, device: { bytes: 6e9 }, frames: 14, size: '512x576', window: 14 }
  assert.deepEqual(lines(6e9), [{ key: 'panel.memory', values }])
  assert.equal(lines(8e9, { window: 8 })[0].key, 'panel.memoryInWindows')
  const short = lines(5e9)
  assert.deepEqual(short.map(({ key, warn }) => [key, warn]), [['panel.memory', true], ['panel.memoryShort', true]])
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

test('a name that the server does not know is shown as it is, with the folder that it belongs in', () => {
  const values = (name, folders = FOLDERS) => notListed(name, folders).values
  assert.deepEqual(values('../<b>x</b>'), { file: '../<b>x</b>', folder: 'models/diffusion_models' })
  assert.deepEqual(values('checkpoints/svd.safetensors'), { file: 'svd.safetensors', folder: 'models/checkpoints' })
  assert.deepEqual(values('checkpoints/a.pt', { '': 'controlnet' }), { file: 'checkpoints/a.pt', folder: 'models/controlnet' })
  assert.equal(values('x'.repeat(2001)).file, `${'x'.repeat(1999)}…`)
  assert.deepEqual(noFile(FOLDERS).values, { folders: 'models/checkpoints, models/diffusion_models' })
})

test('a value of an empty list, which a workflow saves as null, is none, and not one that another node gives', () => {
  assert.equal(valueOf({ widgets: [{ name: 'unet_name', value: null }] }, 'unet_name'), undefined)
})

test('the window is that of the node linked to the nearest sampler, else of the sampler itself', () => {
  const frames = (value) => [{ name: 'window_frames', value }]
  const links = [['loader', 'lora'], ['lora', 'sampler'], ['options', 'sampler'], ['other', 'sampler2'], ['alone', 'preview']]
  const widgets = { sampler: frames(9), options: frames(14), sampler2: frames(9) }
  const { nodes, targets, origins } = graph(links, widgets)
  assert.equal(windowFor(nodes.loader, targets, origins), 14)
  assert.equal(windowFor(nodes.other, targets, origins), 9)
  assert.equal(windowFor(nodes.alone, targets, origins), 0)
})
