// Values as text. Nothing here knows the page or the host.

/** A widget's value as text: a workflow may hold anything that JSON can say. */
export function textOf(value) {
  return typeof value === 'string' ? value : String(JSON.stringify(value))
}
