// Which inputs of SVD Temporal UNet Sampler are shown. Nothing here knows the page.

/** Inputs that Video Options has taken over: shown only where they act, in workflows that were made without that node. */
export const TAKEN_OVER = ['guidance_start', 'guidance_end', 'window_frames', 'window_overlap', 'closed_loop', 'keep_colors']

/** Is an input that Video Options has taken over shown? Where it holds another value than its default, or a link. */
export function actsByItself(value, usual, linked) {
  return linked || value !== usual
}

/** Is guidance_curve shown? Where it is what guides, or may be: a link gives the kind of guidance. */
export function curveActs(guidance, guidanceLinked, linked) {
  return linked || guidanceLinked || guidance === 'curve'
}

/** Was a sampler saved before there was Video Options? Then its height has room for all inputs. */
export function isFromBefore({ inputs = [] }) {
  return !inputs.some(({ name }) => name === 'options')
}
