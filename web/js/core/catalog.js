// The texts of the pack's JavaScript in several languages, without a page: finding one, and filling in its values.

/** The text of a dotted key in a catalog {key: text or catalog}, or undefined. */
export function lookUp(catalog, key) {
  const found = key.split('.').reduce((part, name) => part?.[name], catalog)
  return typeof found === 'string' ? found : undefined
}

/** A value as the language writes it: a number, a list, or {bytes} in GiB or MiB. Strings stay as they are. */
function written(value, language) {
  if (Array.isArray(value)) return new Intl.ListFormat(language).format(value)
  if (typeof value === 'number') return value.toLocaleString(language)
  if (typeof value === 'string') return value
  const [unit, name] = value.bytes >= 2 ** 30 ? [2 ** 30, 'GiB'] : [2 ** 20, 'MiB']
  return `${(value.bytes / unit).toLocaleString(language, { minimumFractionDigits: 1, maximumFractionDigits: 1 })} ${name}`
}

/** A text with its `{name}`s replaced by `values`, each as the language writes it. */
export function fill(text, values, language) {
  return text.replace(/\{(\w+)\}/g, (hole, name) => (Object.hasOwn(values, name) ? written(values[name], language) : hole))
}

/** The text of a key from `catalogs` {language: catalog}, filled in: in the language, else in English, else `otherwise`. */
export function wordsOf(catalogs, language, key, values, otherwise) {
  const found = [language, 'en'].find((language) => lookUp(catalogs[language], key) !== undefined)
  return found ? fill(lookUp(catalogs[found], key), values, found) : otherwise
}
