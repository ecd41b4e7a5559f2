// What is wired to something of another family, before a run. What is not known is never reported. Nothing here knows the page.

import { comesFrom, goesTo, inputOf } from './wires.js'

const SAMPLER = 'TemporalUNetSVDSampler'
const VIDEO_CONDITIONING = ['TemporalUNetSVDConditioning', 'TemporalUNetContinueVideo', 'SVD_img2vid_Conditioning']

const LACKS = { 'info.lacksClip': 'clip', 'info.lacksVae': 'vae', 'info.lacksClipVision': 'clip_vision' } // line -> output

/** The lines about a file, those about a part that it lacks as warnings where a link goes from that part's output. */
export function warnedOfLacking(lines, outputs) {
  return lines.map((line) => {
    const links = outputs?.find(({ name }) => name === LACKS[line.key])?.links
    if (!links?.length) return line
    const key = line.key === 'info.lacksClipVision' ? 'panel.lacksLinkedClipVision' : line.key // the others say what to connect
    return { ...line, key, warn: true }
  })
}

/** A warning {key, values, warn} in a list where an image model goes to where a video model is wanted; `answer`: about its file. */
export function modelWarnings(loader, answer, instances) {
  if (!answer.family || answer.clip) return [] // not known, or a video model
  for (const { node, name } of goesTo(loader, 'MODEL', instances)) {
    const values = { family: answer.family_title, node: node.title }
    if (node.type === SAMPLER && name === 'model') return [{ key: 'panel.needsVideoModel', values, warn: true }]
    const sources = comesFrom(node, 'positive', 'CONDITIONING', instances)
    if (sources.length && sources.every((source) => VIDEO_CONDITIONING.includes(source.type))) {
      return [{ key: 'panel.hasVideoConditioning', values: { ...values, source: sources[0].title }, warn: true }]
    }
  }
  return []
}

/**
 * A warning in a list where a ControlNet acts on a model that it is not for: `answer.families` against the answers of
 * `answerOf(node)` about the models that are sampled with its conditioning.
 */
export function controlWarnings(loader, answer, answerOf, instances) {
  if (!answer.families?.length) return []
  for (const { node } of goesTo(loader, 'CONTROL_NET', instances)) {
    const ends = inputOf(node, 'MODEL') ? [node] : goesTo(node, 'CONDITIONING', instances).map((end) => end.node)
    for (const end of ends) {
      const models = comesFrom(end, inputOf(end, 'MODEL'), 'MODEL', instances).map(answerOf)
      if (models.length && models.every((model) => model?.family && !answer.families.includes(model.family))) {
        return [{ key: 'panel.otherFamily', values: { family: models[0].family_title, node: end.title }, warn: true }]
      }
    }
  }
  return []
}
