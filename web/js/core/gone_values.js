// Workflows saved by older versions of the pack. Nothing here knows the page.

const CONTROL = ['fixed', 'increment', 'decrement', 'randomize'] // of a seed's "control after generate"

/** What versions up to 0.1.1 also saved among a node's values: its index, what it may be, and the input that it belonged to. */
const GONE = {
  TemporalUNetSVDSampler: { index: 15, values: ['independent', 'shuffled'], input: 'window_noise' },
  TemporalUNetSVDConditioning: { index: 7, values: CONTROL },
  TemporalUNetContinueVideo: { index: 5, values: CONTROL },
  TemporalUNetComputeControlNetResiduals: { index: 2, values: CONTROL }
}

/** Whether older versions saved nodes of this type with a value that is gone. */
export const hasChanged = (type) => type in GONE

/** A saved node of this type without the value that is gone. A link to the input that it belonged to stays. */
export function withoutGone(type, saved) {
  const { index, values, input } = GONE[type]
  const { widgets_values: found, inputs } = saved
  if (!Array.isArray(found) || !values.includes(found[index])) return saved
  return {
    ...saved,
    widgets_values: found.toSpliced(index, 1),
    inputs: inputs?.filter(({ name, link }) => name !== input || link != null)
  }
}
