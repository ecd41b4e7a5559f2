// The texts of the pack's JavaScript in several languages, without a page: finding one, and filling in its values.

/** The text of a dotted key in a catalog {key: text or catalog}, or undefined. */
export function lookUp(catalog, key) {
  const found = key.split('.').reduce((part, name) => part?.[name], catalog)
  return typeof found === 'string' ? found : undefined
}

/** A text with its `{name}`s replaced by `values`: numbers as the language writes them, anything else as it is. */
export function fill(text, values, language) {
  const written = (value) => (typeof value === 'number' ? value.toLocaleString(language) : String(value))
  return text.replace(/\{(\w+)\}/g, (hole, name) => (Object.hasOwn(values, name) ? written(values[name]) : hole))
}

/** The text of a key from `catalogs` {language: catalog}: in the language, else in English, else `otherwise`; filled in. */
export function wordsOf(catalogs, language, key, values, otherwise) {
  const own = lookUp(catalogs[language], key)
  return fill(own ?? lookUp(catalogs.en, key) ?? otherwise, values, own === undefined ? 'en' : language)
}
