// Gives each SVD Temporal UNet Sampler its moving preview, and each preview what is reported of the runs of its own workflow.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { readEvent } from './core/preview_frames.js'
import { Preview } from './moving_preview.js'
import { allNodes } from './widget.js'

const NODE = 'TemporalUNetSVDSampler'
const EVENT = 'temporal_unet.preview'
const HOSTS_EVENT = 'b_preview_with_metadata' // the host's own preview, of one frame

const previews = new WeakMap() // node -> its Preview
let running = {} // {prompt_id, workflow_id} of the run that began last; the latter null where nobody knows it

/** The node of an execution id: "7:2" is node 2 in the subgraph of node 7. */
function nodeOf(id) {
  const path = String(id).split(':')
  const last = path.pop()
  const graph = path.reduce((graph, outer) => graph?.getNodeById(outer)?.subgraph, app.rootGraph)
  return graph?.getNodeById(last)
}

const shown = () =>
  allNodes()
    .map((node) => previews.get(node))
    .filter((preview) => preview?.about)

/** Remembers from which workflow the prompt comes: its nodes may have the ids of nodes in the one that is open. */
async function begin({ prompt_id }) {
  running = { prompt_id, workflow_id: null }
  const answer = await api.fetchApi(`/jobs/${prompt_id}`)
  if (!answer.ok || running.prompt_id !== prompt_id) return // older hosts have no such route
  running.workflow_id = (await answer.json()).workflow_id
  for (const preview of shown()) if (isElsewhere(preview.about)) preview.close() // what came before this answer
}

function isElsewhere({ prompt_id }) {
  return running.prompt_id === prompt_id && running.workflow_id && running.workflow_id !== app.rootGraph.id
}

function listen() {
  api.addEventListener('execution_start', ({ detail }) => begin(detail))
  api.addEventListener(EVENT, ({ detail }) => {
    const event = readEvent(detail)
    if (event && !isElsewhere(event)) previews.get(nodeOf(event.node_id))?.take(event)
  })
  api.addEventListener(HOSTS_EVENT, keepHostsAway, { capture: true }) // before the host's own listener
  api.addEventListener('executing', ({ detail }) => {
    for (const preview of shown()) if (String(detail) !== preview.about.node_id) preview.end('done')
  })
  for (const fault of ['execution_error', 'execution_interrupted']) {
    api.addEventListener(fault, ({ detail }) => {
      for (const preview of shown()) if (preview.about.prompt_id === detail.prompt_id) preview.end('stopped')
    })
  }
}

/**
 * The host's own preview of our node is not shown next to ours. A subgraph around it, seen from outside, still shows it, and so
 * does the App mode, where no node is to be seen.
 */
function keepHostsAway(event) {
  const displayNodeId = String(event.detail?.displayNodeId)
  if (!previews.has(nodeOf(displayNodeId)) || !app.canvas.canvas.checkVisibility()) return
  event.stopImmediatePropagation()
  const outer = displayNodeId.split(':').slice(0, -1).join(':')
  if (outer) api.dispatchCustomEvent(HOSTS_EVENT, { ...event.detail, displayNodeId: outer })
}

listen()

app.registerExtension({
  name: 'TemporalUNet.MovingPreview',
  nodeCreated(node) {
    if (node.constructor.comfyClass === NODE) previews.set(node, new Preview(node))
  }
})
