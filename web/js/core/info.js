// What the info panels ask the server, without a page.

export const USUAL_CLIP = { width: 1024, height: 576, frames: 14 } // SVD's own

const CLIP_WIDGETS = { width: 'width', height: 'height', frames: 'video_frames' }

/** `start` and all that can be reached from it by `next(node)`, a list of nodes; the nearest first. */
export function reach(start, next) {
  const found = new Set([start])
  for (const node of found) for (const other of next(node)) found.add(other) // a Set goes on to what is added meanwhile
  return [...found]
}

/** The clip that a node's widgets, [{name, value}, …], describe; null where it has not all of them. */
export function clipOf(widgets) {
  const entries = Object.entries(CLIP_WIDGETS).map(([key, name]) => [key, widgets?.find((widget) => widget.name === name)?.value])
  return entries.every(([, value]) => Number.isInteger(value)) ? Object.fromEntries(entries) : null
}

/**
 * The clip that a model of `loader` is to sample: that of the nearest node that prepares one for a node that the model goes to.
 * `targets(node)` and `origins(node)` list the nodes at the other ends of its links.
 */
export function clipFor(loader, targets, origins) {
  for (const target of reach(loader, targets)) {
    for (const origin of reach(target, origins)) {
      const clip = clipOf(origin.widgets)
      if (clip) return clip
    }
  }
  return USUAL_CLIP
}

/** What is to be said of a file that the server does not list. */
export function notListed(name) {
  if (!name) return 'No file is there to choose.'
  return `${name} is not among the server's files. Put it there and press R, or choose another.`
}
