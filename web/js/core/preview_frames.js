// The moving preview without a page: which frame at which time, where it lies on the sheet, and the words below it. Frames and
// cells count from 0. The names are those of the server's event (nodes/bridge/sampling/preview.py).

const LARGEST_SIDE = 1024 // pixels of a frame; the server's has 256 at most

const clamp = (value, low, high) => Math.min(Math.max(value, low), high)

const isText = (value) => typeof value === 'string'
const isCount = (value) => Number.isSafeInteger(value) && value > 0
const areFrames = (value, frames) =>
  Array.isArray(value) && value.length > 0 && value.every((frame) => isCount(frame + 1) && frame < frames)

/** The data of an event, or null where it lacks the form that preview.py describes: then the server did not send it. */
export function readEvent(data) {
  const { node_id, prompt_id, fps, frames, window, at_work, image, decoded } = data ?? {}
  const isWhole = isText(node_id) && isText(prompt_id) && Number.isFinite(fps) && fps > 0 && isCount(frames)
  if (!isWhole || !takesFit(data) || (image !== undefined && !isSheet(data))) return null
  if (decoded !== undefined) return decoded === true && image !== undefined ? data : null
  const windowFits = window === undefined || (areFrames(window, frames) && window.length === 2)
  const areAtWork = at_work === undefined || (Array.isArray(at_work) && at_work.length === 2 && at_work.every(isCount))
  return windowFits && areAtWork && isCount(data.step) && isCount(data.steps) ? data : null
}

function takesFit({ take, takes, seed }) {
  if (take !== undefined && !(isCount(take) && take <= takes)) return false
  return (takes === undefined || isCount(takes)) && (seed === undefined || isText(seed))
}

function isSheet(data) {
  const { frames, shown, columns, rows, width, height } = data
  const fits = (side) => isCount(side) && side <= LARGEST_SIDE
  return hasImage(data) && areFrames(shown, frames) && [columns, rows].every(isCount) && [width, height].every(fits)
}

/** Does the event bring an image? Only one in the data itself is taken, never an address. */
export function hasImage({ image }) {
  return typeof image === 'string' && image.startsWith('data:image/jpeg;base64,')
}

/** The frame of a clip that plays over and over, `seconds` after the start of its first. */
export function frameAt(seconds, fps, frames) {
  return Math.floor(seconds * fps) % frames
}

/** Seconds from the start of the clip to the middle of a frame. */
export function timeOf(frame, fps) {
  return (frame + 0.5) / fps
}

/** The cell of the sheet for a frame; of a clip too long for the sheet only every second frame (third, …) is `shown`. */
export function cellOf(frame, shown) {
  const after = shown.findIndex((other) => other > frame)
  return after < 0 ? shown.length - 1 : Math.max(after - 1, 0)
}

/** The top left corner of a cell on the sheet, in pixels. */
export function cornerOf(cell, { columns, width, height }) {
  return [(cell % columns) * width, Math.floor(cell / columns) * height]
}

/** The frame under a pointer at `x` on an image that begins at `left`: from the first frame there to the last at its right. */
export function frameUnder(x, left, width, frames) {
  return clamp(Math.floor(((x - left) / width) * frames), 0, frames - 1)
}

/** The spans of the clip, as [start, end] of 0..1, that a window covers: two where it runs over the end into the start. */
export function spansOf([first, last], frames) {
  const start = first / frames
  const end = (last + 1) / frames
  return start < end
    ? [[start, end]]
    : [
        [start, 1],
        [0, end]
      ]
}

/**
 * The words under the image, by `t` of texts.js. `frame` is one chosen by hand, `window` the [first, last] frame being worked on,
 * `atWork` the [devices at work, all devices] where there are several, `ended` is "" while the sampler runs, then "done" or
 * "stopped". `step` and `steps` are not known of a clip from the cache. Of several takes `take` is the one that is shown alone, and
 * `seed` its seed, where it is known.
 */
export function caption({ take, takes, seed, ...clip }, t) {
  const words = captionOfClip(clip, t)
  if (!takes) return words
  const key = !take ? 'takes' : seed === undefined ? 'take' : 'takeOfSeed'
  return t('preview.ofTakes', { takes: t(`preview.${key}`, { take, takes, seed }), words })
}

function captionOfClip({ step, steps, frames, frame, window, atWork, ended }, t) {
  if (frame !== undefined) return t('preview.frame', { frame: frame + 1, frames })
  if (ended === 'done') return t(steps ? 'preview.done' : 'preview.decoded', { frames, steps })
  if (ended) return t('preview.stopped', { step, steps })
  if (atWork) return t('preview.devices', { step, steps, busy: atWork[0], devices: atWork[1] })
  if (!window) return t('preview.step', { step, steps })
  const [first, last] = window
  const key = first === last ? 'windowOfOne' : first < last ? 'window' : 'windowOverEnd'
  return t(`preview.${key}`, { step, steps, first: first + 1, last: last + 1, total: frames })
}

/** The image's height in a node that leaves it `room` pixels of width: as its shape asks, within reason. */
export function imageHeight(room, { width, height }) {
  return Math.round(clamp((room * height) / width, 96, 260))
}
