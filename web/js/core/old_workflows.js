// Workflows saved by older versions of the pack. Nothing here knows the page.

const WINDOW_NOISE = 15 // index of its value: it stood before keep_colors, the last one
const CHOICES = ['independent', 'shuffled'] // of window_noise; keep_colors is true or false

/** A saved SVD Temporal UNet Sampler without the input window_noise, which it had until version 0.1.1. A link to it stays. */
export function withoutWindowNoise(saved) {
  const { widgets_values: values, inputs } = saved
  if (!Array.isArray(values) || !CHOICES.includes(values[WINDOW_NOISE])) return saved
  return {
    ...saved,
    widgets_values: values.toSpliced(WINDOW_NOISE, 1),
    inputs: inputs?.filter(({ name, link }) => name !== 'window_noise' || link != null)
  }
}
