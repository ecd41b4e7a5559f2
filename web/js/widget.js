// What our own widgets of plain elements have in common.

import { app } from '../../../scripts/app.js'

let made = 0 // widgets

export const MARGIN = 10 // pixels that the classic renderer leaves around a widget's element
const DIMMED = { 2: 'opacity(0.4)', 4: 'opacity(0.2)' } // mode -> as the classic renderer draws a node: muted, bypassed

/** Every node of the open workflow, also those in subgraphs. */
export function allNodes() {
  return [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes)
}

/** The nodes that stand for a subgraph. */
export function instancesOf(graph) {
  return allNodes().filter((node) => node.subgraph === graph)
}

/**
 * At once to the size that the host gives the node when it loads it: else its undo would find another graph than it made. In Nodes
 * 2.0 the page makes the room, and only for what is shown.
 */
export function growNode(node) {
  if (!LiteGraph.vueNodesMode) node.expandToFitContent()
  node.setDirtyCanvas(true, true)
}

/** Shows or hides a widget that is `height` pixels high, and has the node's height follow. */
export function setShown(node, widget, shown, height) {
  const changed = shown !== !widget.hidden
  widget.hidden = !shown // the classic renderer reads this; Nodes 2.0 reads options, or what newer hosts keep by the node's id,
  // which after an undo is still of the node that had the id before it.
  for (const options of [widget.options, widget._state?.options ?? {}]) options.hidden = !shown
  if (!changed) return
  if (shown) return growNode(node)
  const [width, before] = node.size
  node.setSize([width, Math.max(node.computeSize()[1], before - height)])
  node.setDirtyCanvas(true, true)
}

/** An element with this style, set in a way that no content policy forbids. */
export function element(tag, style) {
  const created = document.createElement(tag)
  Object.assign(created.style, style)
  return created
}

/** Dims what the classic renderer has put our element into; not the element itself, which Nodes 2.0 may show next. */
function dim(container, mode) {
  if (container) container.style.filter = DIMMED[mode] ?? ''
}

/**
 * Adds `root` to the node as its last widget, which is neither saved nor sent. `heights()` gives its [least, most] pixels. To be
 * called in `nodeCreated`: later ones are not drawn.
 */
export function addWidget(node, name, type, root, heights) {
  // Of each node its own name and type: else Nodes 2.0, whose hosts know widgets by the one or by the other, goes on showing the
  // element of the node that had the same id before an undo or a reload.
  const own = ++made
  const widget = node.addDOMWidget(`${name}_${own}`, `${type}_${own}`, root, {
    serialize: false, // not in a prompt …
    hideOnZoom: false,
    hideInPanel: true, // an element is in one place only
    getMinHeight: () => heights()[0],
    getMaxHeight: () => heights()[1],
    onDraw: () => dim(root.parentElement, node.mode), // called by the classic renderer alone
    getValue: () => '',
    setValue: () => {}
  })
  widget.serialize = false // … and not in a workflow
  root.addEventListener('wheel', (event) => {
    if (!LiteGraph.vueNodesMode) app.canvas.processMouseWheel(event) // the classic renderer's canvas lies beneath
  })
  root.addEventListener('contextmenu', (event) => {
    // the node's menu, in Nodes 2.0: the widget's would offer to promote it
    const rows = root.closest('.lg-node-widgets')
    if (!rows) return
    event.preventDefault()
    event.stopPropagation()
    rows.dispatchEvent(new MouseEvent('contextmenu', event))
  })
  return widget
}
