// Where the links of a graph lead, also into subgraphs and out of them. Nothing here knows the page.
//
// Of a node it reads `mode`, `type`, `inputs` [{name, type, link}], `outputs` [{type, links}], `graph`, and `subgraph` where it
// stands for one. `instances(graph)` lists the nodes that stand for a subgraph.

const MUTED = 2 // modes of a node
const BYPASSED = 4
const SIDES = ['positive', 'negative'] // conditioning that a node keeps apart

/** `start` and all that can be reached from it by `next(node)`, a list of nodes; the nearest first. */
export function reach(start, next) {
  const found = new Set([start])
  for (const node of found) for (const other of next(node)) found.add(other) // a Set goes on to what is added meanwhile
  return [...found]
}

/** Links from `ids` of a graph on; `cross(link, graph, add)` adds those that they go on as, with add(graph, ids). link -> graph */
function follow(graph, ids, cross) {
  const found = new Map()
  const add = (graph, ids) => {
    for (const link of ids.map((id) => graph?.getLink(id))) if (link && !found.has(link)) found.set(link, graph)
  }
  add(graph, ids)
  for (const [link, graph] of found) cross(link, graph, add) // a Map goes on to what is added meanwhile
  return [...found]
}

/** {node, name of its input} at the other ends of an output's links. */
export function targetsOf(node, slot, instances) {
  const links = follow(node.graph, node.outputs[slot].links ?? [], (link, graph, add) => {
    const target = graph.getNodeById(link.target_id)
    if (link.targetIsIoNode) {
      for (const outer of instances(graph)) if (!outer.mode) add(outer.graph, outer.outputs?.[link.target_slot]?.links ?? [])
    } else if (target?.subgraph && !target.mode) {
      const name = target.inputs[link.target_slot]?.name
      add(target.subgraph, target.subgraph.inputs.find((input) => input.name === name)?.linkIds ?? [])
    }
  })
  const ends = links.map(([link, graph]) => [graph.getNodeById(link.target_id), link.target_slot])
  return ends
    .filter(([target, slot]) => target?.inputs?.[slot] && !target.subgraph && target.mode !== MUTED)
    .map(([target, slot]) => ({ node: target, name: target.inputs[slot].name }))
}

/** The nodes that an input's link comes from: one, or none, or one for each place that a subgraph stands at. */
function originsOf(node, name, instances) {
  const idOf = (node, name) => node.inputs?.find((input) => input.name === name)?.link
  const links = follow(node.graph, [idOf(node, name)], (link, graph, add) => {
    const origin = graph.getNodeById(link.origin_id)
    if (link.originIsIoNode) {
      const outer = graph.inputs[link.origin_slot]?.name
      for (const instance of instances(graph)) add(instance.graph, [idOf(instance, outer)])
    } else if (origin?.subgraph) add(origin.subgraph, origin.subgraph.outputs[link.origin_slot]?.linkIds ?? [])
  })
  return links.map(([link, graph]) => graph.getNodeById(link.origin_id)).filter((origin) => origin && !origin.subgraph)
}

const inputsOf = (node, type) => (node.inputs ?? []).filter((input) => input.type === type)

/** Whether what a node gives of a type is what it is given: not where it chooses among several, or joins them. */
function passesOn(node, type) {
  const names = inputsOf(node, type).map(({ name }) => name)
  return node.type === 'Reroute' || names.length === 1 || (names.length > 1 && names.every((name) => SIDES.includes(name)))
}

/** {node, name} of every awake input that the outputs of a type go to, also through nodes that pass them on. */
export function goesTo(start, type, instances) {
  const ends = []
  reach(start, (node) => {
    if (node !== start && !passesOn(node, type)) return []
    const slots = [...(node.outputs ?? []).keys()].filter((slot) => [type, '*'].includes(node.outputs[slot].type))
    const found = slots.flatMap((slot) => targetsOf(node, slot, instances))
    ends.push(...found.filter((end) => end.node.mode !== BYPASSED))
    return found.map((end) => end.node)
  })
  return ends
}

/** The nodes that first gave what an input of a type is given, seen through nodes that pass it on. */
export function comesFrom(node, name, type, instances) {
  const before = (node) => {
    if (!passesOn(node, type)) return []
    const inputs = node.type === 'Reroute' ? node.inputs : inputsOf(node, type)
    return inputs.flatMap((input) => originsOf(node, input.name, instances))
  }
  const starts = originsOf(node, name, instances)
  const nodes = new Set(starts.flatMap((start) => reach(start, before)))
  return [...nodes].filter((found) => !passesOn(found, type))
}

/** Whether a node has an input of a type; its name. */
export function inputOf(node, type) {
  return inputsOf(node, type)[0]?.name
}
