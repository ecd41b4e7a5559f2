// What the info panels ask the server and show of its answer, without a page. Of a node they know `widgets`, `inputs` and `graph`.

import { textOf } from './text.js'

export const USUAL_CLIP = { width: 1024, height: 576, frames: 14 } // SVD's own

const CLIP = {
  // -> the widget that gives it, and what it is called
  width: ['width', 'the width'],
  height: ['height', 'the height'],
  frames: ['video_frames', 'the number of frames']
}
const MOST_HOPS = 50 // links that are followed to find a value: only links in a circle need more
const CONSTANT = /primitive|constant/i // types of nodes that hand on their widget `value` as it is

/** `start` and all that can be reached from it by `next(node)`, a list of nodes; the nearest first. */
export function reach(start, next) {
  const found = new Set([start])
  for (const node of found) for (const other of next(node)) found.add(other) // a Set goes on to what is added meanwhile
  return [...found]
}

/**
 * The value that a run takes for an input: its widget's, or what a linked primitive, constant or subgraph node gives. null where
 * that cannot be known, undefined where the node has no such input. `instances(graph)`: the nodes that stand for a subgraph.
 */
export function valueOf(node, name, instances, hops = MOST_HOPS) {
  const link = node.graph?.getLink(node.inputs?.find((input) => input.name === name)?.link)
  if (!link) return node.widgets?.find((widget) => widget.name === name)?.value
  return hops ? valueOfLink(node.graph, link, instances, hops - 1) : null
}

function valueOfLink(graph, link, instances, hops) {
  if (link.originIsIoNode) {
    const name = graph.inputs[link.origin_slot]?.name
    const values = new Set(instances(graph).map((node) => valueOf(node, name, instances, hops)))
    return values.size === 1 ? ([...values][0] ?? null) : null
  }
  const origin = graph.getNodeById(link.origin_id)
  const awake = origin?.mode === 0 // neither muted nor bypassed
  return awake && CONSTANT.test(origin.type) ? (valueOf(origin, 'value', instances, hops) ?? null) : null
}

/** The clip {width, height, frames} that a node describes, null for what cannot be known; null where it describes none. */
export function clipOf(node, instances) {
  const entries = Object.entries(CLIP).map(([key, [name]]) => [key, valueOf(node, name, instances)])
  return entries.every(([, value]) => value === null || Number.isInteger(value)) ? Object.fromEntries(entries) : null
}

/**
 * The clip that a model of `loader` is to sample: that of the nearest node that prepares one for a node that the model goes to.
 * `targets(node)` and `origins(node)` list the nodes at the other ends of its links.
 */
export function clipFor(loader, targets, origins, instances) {
  for (const target of reach(loader, targets)) {
    for (const origin of reach(target, origins)) {
      const clip = clipOf(origin, instances)
      if (clip) return clip
    }
  }
  return USUAL_CLIP
}

/** What of the clip is known, for the question. */
export function known(clip) {
  return Object.fromEntries(Object.entries(clip).filter(([, value]) => value !== null))
}

/**
 * The lines to show of an answer of the server {lines, clip}: its own, and of a video model the memory that the clip takes. Where
 * `asked`, the clip that was asked about, is not wholly known, the answer is about another clip: then a line says what is missing.
 */
export function linesOf({ lines, clip }, asked) {
  if (!clip) return lines
  const unknown = Object.keys(asked)
    .filter((key) => asked[key] === null)
    .map((key) => CLIP[key][1])
  if (!unknown.length) return [...lines, memoryLine(clip)]
  return [...lines, `${unknown.join(' and ')} ${unknown.length > 1 ? 'come' : 'comes'} from another node`]
}

function memoryLine({ bytes, frames, width, height, window }) {
  const windows = window < frames ? `, in windows of ${window}` : ''
  return `about ${size(bytes)}, weights included, for ${frames} frames of ${width}x${height}${windows}`
}

function size(bytes) {
  const [unit, name] = bytes >= 2 ** 30 ? [2 ** 30, 'GiB'] : [2 ** 20, 'MiB']
  return `${(bytes / unit).toLocaleString('en-US', { minimumFractionDigits: 1, maximumFractionDigits: 1 })} ${name}`
}

/** What is to be said of a file that the server does not list; `folders`: beginning of a name -> the folder in models. */
export function notListed(name, folders) {
  if (!name) return `No file is there to choose. Put one in models/${Object.values(folders).join(' or models/')} and press R.`
  const text = textOf(name)
  const beginning = Object.keys(folders).find((beginning) => text.startsWith(beginning))
  const file = text.slice(beginning.length)
  return `${file} is not in models/${folders[beginning]}. Put it there and press R, or choose another file.`
}
