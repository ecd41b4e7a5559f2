// Puts a photo or video that a template of ours starts from into the input folder, by the host's own upload, when a workflow is
// opened that asks for it and the folder has no file of that name.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

const COMBOS = { LoadImage: 'image', LoadVideo: 'file' } // node -> its list of files in the input folder
const FOLDER = new URL('../examples/', import.meta.url)
// What is in it: a workflow may come from anybody, and must not have any other address fetched.
const FILES = ['temporal_unet_balloon.png', 'temporal_unet_balloon.mp4', 'temporal_unet_miniature.png']

/** The names that a node's list offers; the host gives them in one of two forms. */
function choices(type) {
  const [kind, options] = LiteGraph.registered_node_types[type].nodeData.input.required[COMBOS[type]]
  return Array.isArray(kind) ? kind : options.options
}

/** Whether the input folder has the file now; else the host reports it as missing. */
async function upload(name) {
  const file = await (await fetch(new URL(name, FOLDER))).blob()
  const body = new FormData()
  body.append('image', new File([file], name, { type: file.type }))
  const answer = await api.fetchApi('/upload/image', { method: 'POST', body })
  if (!answer.ok) console.error(`Temporal UNet: ${name} could not be put into the input folder: ${answer.statusText}`)
  return answer.ok
}

async function beforeConfigureGraph({ nodes }) {
  const asking = nodes.filter(({ type, properties }) => type in COMBOS && FILES.includes(properties?.temporal_unet_example))
  for (const { type, properties } of asking) {
    const name = properties.temporal_unet_example
    if (!choices(type).includes(name) && (await upload(name))) choices(type).push(name)
  }
}

app.registerExtension({ name: 'TemporalUNet.ExampleInputs', beforeConfigureGraph })
