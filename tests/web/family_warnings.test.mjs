// Models and ControlNets that are wired to what is of another family, through nodes and subgraphs; what is not known stays unsaid.

import assert from 'node:assert/strict'
import test from 'node:test'

import { controlWarnings, modelWarnings, warnedOfLacking } from '../../web/js/core/family_warnings.js'

const SD1 = { family: 'sd1', family_title: 'Stable Diffusion 1' }
const SVD = { family: 'svd', family_title: 'Stable Video Diffusion', clip: {} }
const MODEL = { model: 'MODEL' }
const SIDES = { positive: 'CONDITIONING', negative: 'CONDITIONING' }
// type -> [inputs, outputs], each name -> type of what goes through it
const KINDS = {
  Loader: [{}, MODEL],
  Merge: [{ model1: 'MODEL', model2: 'MODEL' }, MODEL],
  Lora: [MODEL, MODEL],
  Reroute: [{ '': '*' }, { '': '*' }],
  TemporalUNetSVDSampler: [{ ...MODEL, ...SIDES }, {}],
  KSampler: [{ ...MODEL, ...SIDES }, {}],
  Text: [{}, { out: 'CONDITIONING' }],
  TemporalUNetSVDConditioning: [{}, SIDES],
  ControlLoader: [{}, { control: 'CONTROL_NET' }],
  Apply: [{ ...SIDES, control: 'CONTROL_NET' }, SIDES],
  Compute: [{ ...MODEL, positive: 'CONDITIONING', control: 'CONTROL_NET' }, {}]
}

class Graph {
  constructor() {
    Object.assign(this, { nodes: [], links: [], inputs: [], outputs: [] })
  }

  getLink(id) {
    return this.links[id]
  }

  getNodeById(id) {
    return this.nodes[id] ?? null
  }

  add(type, { subgraph, mode = 0 } = {}) {
    const slots = (kinds) => Object.entries(kinds).map(([name, type]) => ({ name, type }))
    const [inputs, outputs] = subgraph ? [subgraph.inputs, subgraph.outputs] : KINDS[type].map(slots)
    const node = { id: this.nodes.length, type, title: type, mode, subgraph, graph: this }
    node.inputs = inputs.map(({ name, type }) => ({ name, type, link: null }))
    node.outputs = outputs.map(({ name, type }) => ({ name, type, links: [] }))
    this.nodes.push(node)
    return node
  }

  /** Links an output of a node, or an input of this subgraph (from null), to an input of a node, or an output (to null). */
  link(from, slot, to, name) {
    const id = this.links.length
    const [ins, outs] = [to ? to.inputs : this.outputs, from ? from.outputs : this.inputs]
    const [origin_slot, target_slot] = [outs, ins].map((slots, i) => slots.findIndex((each) => each.name === [slot, name][i]))
    const ends = { origin_id: from?.id ?? -10, origin_slot, target_id: to?.id ?? -20, target_slot }
    this.links.push({ ...ends, originIsIoNode: !from, targetIsIoNode: !to })
    if (from) outs[origin_slot].links.push(id)
    else outs[origin_slot].linkIds.push(id)
    if (to) ins[target_slot].link = id
    else ins[target_slot].linkIds.push(id)
  }
}

/** A graph with nodes by name (the types are `types`) and links written as `a.slot b.slot`. */
function build(types, ...links) {
  const graph = new Graph()
  const nodes = Object.fromEntries(Object.entries(types).map(([name, [type, more]]) => [name, graph.add(type, more)]))
  for (const [from, to] of links.map((link) => link.split(' ').map((end) => end.split('.')))) {
    graph.link(nodes[from[0]], from[1], nodes[to[0]], to[1])
  }
  return nodes
}

const nowhere = () => []
const warned = (node, answer, instances = nowhere) => modelWarnings(node, answer, instances).map(({ key, values }) => [key, values.node])
const NEEDS = [['panel.needsVideoModel', 'TemporalUNetSVDSampler']]

test('an image model that goes to the sampler of videos is reported, through any nodes that pass it on', () => {
  const types = { a: ['Loader'], lora: ['Lora'], dot: ['Reroute'], bypassed: ['Lora', { mode: 4 }], end: ['TemporalUNetSVDSampler'] }
  const nodes = build(types, 'a.model lora.model', 'lora.model dot.', 'dot. bypassed.model', 'bypassed.model end.model')
  assert.deepEqual(warned(nodes.a, SD1), NEEDS)
  assert.deepEqual(modelWarnings(nodes.a, SD1, nowhere)[0].values.family, 'Stable Diffusion 1')
  assert.deepEqual(warned(nodes.a, SVD), [])
  assert.deepEqual(warned(nodes.a, {}), []) // of a family that is not known
})

test('nothing is said of what does not run, or is not surely this model', () => {
  for (const middle of [['Lora', { mode: 2 }], ['Merge']]) {
    const input = middle[0] === 'Merge' ? 'model1' : 'model'
    const nodes = build({ a: ['Loader'], b: middle, end: ['TemporalUNetSVDSampler'] }, `a.model b.${input}`, 'b.model end.model')
    assert.deepEqual(warned(nodes.a, SD1), [])
  }
  const muted = build({ a: ['Loader'], end: ['TemporalUNetSVDSampler', { mode: 2 }] }, 'a.model end.model')
  assert.deepEqual(warned(muted.a, SD1), [])
})

test('an image model under another sampler is reported where all its conditioning is that of a video', () => {
  const types = { a: ['Loader'], svd: ['TemporalUNetSVDConditioning'], text: ['Text'], apply: ['Apply'], end: ['KSampler'] }
  const links = ['a.model end.model', 'apply.positive end.positive', 'apply.negative end.negative']
  const video = build(types, ...links, 'svd.positive apply.positive', 'svd.negative apply.negative')
  assert.deepEqual(warned(video.a, SD1), [['panel.hasVideoConditioning', 'KSampler']])
  assert.deepEqual(warned(build(types, ...links, 'text.out apply.positive', 'svd.negative apply.negative').a, SD1), [])
})

/** A graph whose loader's model goes into a subgraph with the sampler, or out of one with the loader. */
function nested(into) {
  const [outer, inner] = [new Graph(), new Graph()]
  const slot = { name: 'm', type: 'MODEL', linkIds: [] }
  inner[into ? 'inputs' : 'outputs'].push(slot)
  const loader = (into ? outer : inner).add('Loader')
  const sampler = (into ? inner : outer).add('TemporalUNetSVDSampler')
  const instance = outer.add('sub', { subgraph: inner })
  if (into) (outer.link(loader, 'model', instance, 'm'), inner.link(null, 'm', sampler, 'model'))
  else (inner.link(loader, 'model', null, 'm'), outer.link(instance, 'm', sampler, 'model'))
  return { loader, sampler, instance, instances: (graph) => (graph === inner ? [instance] : []) }
}

test('subgraphs are looked into, and out of, unless they are muted or bypassed', () => {
  for (const into of [true, false]) {
    const { loader, instance, instances } = nested(into)
    assert.deepEqual(warned(loader, SD1, instances), NEEDS)
    for (instance.mode of [2, 4]) assert.deepEqual(warned(loader, SD1, instances), [])
  }
})

test('a circle of links comes to an end', () => {
  const nodes = build({ a: ['Loader'], b: ['Lora'], c: ['Lora'] }, 'a.model b.model', 'b.model c.model', 'c.model b.model')
  assert.deepEqual(warned(nodes.a, SD1), [])
})

/** What is said of a ControlNet for `families`, applied to what is sampled with a model of `answer`. */
function control(families, answer, ...more) {
  const types = { a: ['Loader'], net: ['ControlLoader'], apply: ['Apply'], end: ['KSampler'], merge: ['Merge'], b: ['Loader'] }
  const links = more.length ? more : ['a.model end.model', 'net.control apply.control', 'apply.negative end.negative']
  const nodes = build(types, ...links)
  return controlWarnings(nodes.net, { families }, (node) => (node === nodes.a ? answer : undefined), nowhere).map(({ values }) => values)
}

test('a ControlNet on a model that it is not for is reported', () => {
  assert.deepEqual(control(['sd1'], SVD), [{ family: 'Stable Video Diffusion', node: 'KSampler' }])
  assert.deepEqual(control(['sd1', 'svd'], SVD), [])
  for (const [families, answer] of [[[], SVD], [undefined, SVD], [['sd1'], {}], [['sd1'], null], [['sd1'], undefined]]) {
    assert.deepEqual(control(families, answer), []) // not known
  }
  const merged = ['a.model merge.model1', 'b.model merge.model2', 'merge.model end.model', 'net.control apply.control']
  assert.deepEqual(control(['sd1'], SVD, ...merged, 'apply.positive end.positive'), [])
})

test('so is one whose residuals are computed with such a model', () => {
  const nodes = build({ a: ['Loader'], net: ['ControlLoader'], end: ['Compute'] }, 'a.model end.model', 'net.control end.control')
  assert.equal(controlWarnings(nodes.net, { families: ['sd1'] }, () => SVD, nowhere).length, 1)
})

test('a part that the file lacks is a warning where a link goes from its output', () => {
  const lines = ['info.hasVae', 'info.lacksClip', 'info.lacksClipVision'].map((key) => ({ key, values: {} }))
  const outputs = (clip, clipVision) => [{ name: 'clip', links: clip }, { name: 'clip_vision', links: clipVision }]
  assert.deepEqual(warnedOfLacking(lines, outputs(null, [])), lines)
  const [, clip, vision] = warnedOfLacking(lines, outputs([1], [2]))
  assert.deepEqual([clip.key, clip.warn], ['info.lacksClip', true])
  assert.deepEqual([vision.key, vision.warn], ['panel.lacksLinkedClipVision', true])
})
