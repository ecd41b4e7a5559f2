// locales/<language>/main.json: complete, and with the same holes for values in every language.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'

const read = (language) => JSON.parse(readFileSync(new URL(`../../locales/${language}/main.json`, import.meta.url), 'utf8'))
const flat = (texts, start = '') =>
  Object.entries(texts).flatMap(([key, text]) => (typeof text === 'string' ? [[start + key, text]] : flat(text, `${start}${key}.`)))
const holes = (text) => (text.match(/\{\w+\}/g) ?? []).sort()
const english = new Map(flat(read('en')))

for (const language of ['zh', 'ja', 'ko', 'fr', 'es']) {
  const texts = new Map(flat(read(language)))

  test(`${language} has every text of the English ones, and no other`, () => {
    assert.deepEqual([...texts.keys()].sort(), [...english.keys()].sort())
    assert.deepEqual([...texts].filter(([, text]) => !text.trim()), [])
  })

  test(`${language} has a place for every value, and for no other`, () => {
    for (const [key, text] of english) assert.deepEqual(holes(texts.get(key) ?? text), holes(text), key)
  })
}
