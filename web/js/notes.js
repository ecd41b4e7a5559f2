// Shows the notes of our templates in the language of the editor, as long as nobody has changed their text.

import { app } from '../../../scripts/app.js'
import { t, versions } from './texts.js'

function beforeConfigureGraph({ nodes }) {
  for (const node of nodes) {
    const note = node.properties?.temporal_unet_note
    if (!note) continue
    const { key, files } = note
    if (versions(`notes.${key}`, { files }).includes(node.widgets_values?.[0])) node.widgets_values = [t(`notes.${key}`, { files })]
  }
}

app.registerExtension({ name: 'TemporalUNet.Notes', beforeConfigureGraph })
