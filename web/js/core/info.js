// What the info panels ask the server and show of its answer, without a page. Of a node they know `widgets`, `inputs` and `graph`.

import { reach } from './wires.js'

export const USUAL_CLIP = { width: 1024, height: 576, frames: 14 } // SVD's own

const CLIP = {
  // -> the widget that gives it
  width: 'width',
  height: 'height',
  frames: 'video_frames'
}
const MOST_HOPS = 50 // links that are followed to find a value: only links in a circle need more
const CONSTANT = /primitive|constant/i // types of nodes that hand on their widget `value` as it is

/**
 * The value that a run takes for an input: its widget's, or what a linked primitive, constant or subgraph node gives. null where
 * that cannot be known, undefined where the node has no such input. `instances(graph)`: the nodes that stand for a subgraph.
 */
export function valueOf(node, name, instances, hops = MOST_HOPS) {
  const link = node.graph?.getLink(node.inputs?.find((input) => input.name === name)?.link)
  if (!link) return node.widgets?.find((widget) => widget.name === name)?.value ?? undefined // null: of a list that was empty
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
  const entries = Object.entries(CLIP).map(([key, name]) => [key, valueOf(node, name, instances)])
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

/**
 * The frames of a window that the nearest sampler is told, by the node linked to it or by itself; 0 (the model's own) where it is
 * told none, or where a link gives it.
 */
export function windowFor(loader, targets, origins, instances) {
  const told = (node) => valueOf(node, 'window_frames', instances)
  const sampler = reach(loader, targets).find((node) => told(node) !== undefined)
  if (!sampler) return 0
  return told(origins(sampler).find((node) => told(node) !== undefined) ?? sampler) ?? 0
}

/** What of the clip is known, for the question. */
export function known(clip) {
  return Object.fromEntries(Object.entries(clip).filter(([, value]) => value !== null))
}

/**
 * The lines {key of their text, values, text: English where that is nowhere, warn} to show of an answer of the server {lines, clip,
 * device_bytes}: its own, and of a video model the memory that the clip takes. Where `asked`, the clip that was asked about, is not
 * wholly known, the answer is about another clip: then `unknown` of a line lists what is missing.
 */
export function linesOf({ lines, clip, device_bytes: device }, asked) {
  const own = lines.map((line) => ({ ...line, key: `info.${line.key}` }))
  if (!clip) return own
  const unknown = Object.keys(asked).filter((key) => asked[key] === null)
  if (unknown.length) return [...own, { key: 'panel.clipUnknown', unknown }]
  return [...own, ...memoryLines(clip, device)]
}

function memoryLines({ bytes, frames, width, height, window }, device) {
  const values = { need: { bytes }, device: { bytes: device }, frames, size: `${width}x${height}`, window }
  const line = { key: window < frames ? 'panel.memoryInWindows' : 'panel.memory', values }
  if (bytes <= device) return [line]
  return [
    { ...line, warn: true },
    { key: 'panel.memoryShort', warn: true }
  ]
}

const LONGEST_QUESTION = 8000 // characters: the server refuses a line of over 8,190 before it reads it
const LONGEST_NAME = 2000 // characters that are shown

/** Is the question one that the server takes? The name of no file makes it longer. */
export function canAsk(url) {
  return url.length <= LONGEST_QUESTION
}

const inModels = (folder) => `models/${folder}`

/** The line where no file is chosen, as in an empty list; `folders`: beginning of a name -> the folder in models. */
export function noFile(folders) {
  const all = [...new Set(Object.values(folders))].map(inModels)
  return { key: 'panel.noFile', values: { folders: all.join(', ') }, warn: true }
}

/** The line about a file that the server does not know by this name. */
export function notListed(name, folders) {
  const beginning = Object.keys(folders).find((beginning) => name.startsWith(beginning))
  const file = name.slice(beginning.length)
  const shown = file.length <= LONGEST_NAME ? file : `${file.slice(0, LONGEST_NAME - 1)}…`
  const values = { file: shown, folder: inModels(folders[beginning]) }
  return { key: 'panel.notListed', values, warn: true }
}
