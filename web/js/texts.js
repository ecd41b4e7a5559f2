// The texts of our widgets in the language of the editor, from locales/<language>/main.json.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { wordsOf } from './core/catalog.js'

// Waited for here: the host creates nodes only once it has loaded every script. When the user changes the language, the host
// creates all nodes again.
const catalogs = await load()

/** What the host serves of all packs, ours of it: language -> texts. */
async function load() {
  try {
    const served = await (await api.fetchApi('/i18n')).json()
    return Object.fromEntries(Object.entries(served).map(([language, { temporalUnet }]) => [language, temporalUnet]))
  } catch (fault) {
    console.error('Temporal UNet: the server gives no texts; their keys are shown instead.', fault)
    return {}
  }
}

/** The language of the editor, such as `en` or `zh`. */
function language() {
  return app.extensionManager.setting.get('Comfy.Locale')
}

/**
 * The text of a dotted key, such as `panel.linkedName`, in the language of the editor, else in English, else `otherwise`. Its
 * `{name}`s are replaced by `values`: numbers and lists as the language writes them, strings as they are.
 */
export function t(key, values = {}, otherwise = key) {
  return wordsOf(catalogs, language(), key, values, otherwise)
}

/** The text of a key in every language, filled in. */
export function versions(key, values = {}) {
  return Object.keys(catalogs).map((language) => wordsOf(catalogs, language, key, values, key))
}
