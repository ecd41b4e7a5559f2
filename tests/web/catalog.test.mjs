// The texts of the JavaScript: found by key and language, filled with values.

import assert from 'node:assert/strict'
import { test } from 'node:test'

import { fill, lookUp, wordsOf } from '../../web/js/core/catalog.js'

const CATALOGS = {
  en: { panel: { size: '{count} frames of {name}', only: 'only here: {count}' } },
  fr: { panel: { size: '{name} : {count} images' } },
  other: undefined // a language of another pack
}

test('a dotted key names a text, not a group of them, and nothing that the catalog does not hold', () => {
  assert.equal(lookUp(CATALOGS.en, 'panel.size'), '{count} frames of {name}')
  for (const key of ['panel', 'panel.none', 'none.none', 'panel.size.length']) assert.equal(lookUp(CATALOGS.en, key), undefined)
  assert.equal(lookUp(undefined, 'panel.size'), undefined)
})

test('a value of another name stays out, and a hole without a value stays visible', () => {
  assert.equal(fill('{a} and {b}', { a: 1, c: 2 }, 'en'), '1 and {b}')
  assert.equal(fill('{a}', { a: '{b} $& $1', b: 'twice' }, 'en'), '{b} $& $1') // never filled in twice
})

test('numbers are written as the language writes them, strings as they are', () => {
  const words = (language) => wordsOf(CATALOGS, language, 'panel.size', { count: 1234.5, name: '1024x576' })
  assert.equal(words('en'), '1,234.5 frames of 1024x576')
  assert.equal(words('fr').replaceAll(/\s/g, ' '), '1024x576 : 1 234,5 images')
})

test('bytes are written in GiB or MiB', () => {
  const words = (bytes, language) => fill('{size}', { size: { bytes } }, language)
  assert.equal(words(1288490189, 'en'), '1.2 GiB')
  assert.equal(words(1288490189, 'fr'), '1,2 GiB')
  assert.equal(words(2 ** 30 - 1, 'en'), '1,024.0 MiB')
})

test('a list is joined in the language of the text', () => {
  const words = (language) => wordsOf({ en: { what: '{names}' }, fr: { what: '{names}' } }, language, 'what', { names: ['a', 'b'] })
  assert.deepEqual(['en', 'fr', 'ru'].map(words), ['a and b', 'a et b', 'a and b'])
})

test('a text that a language lacks, or a language that is not there, is English; a key that is nowhere what is given', () => {
  assert.equal(wordsOf(CATALOGS, 'fr', 'panel.only', { count: 1234.5 }), 'only here: 1,234.5')
  for (const language of ['zh-TW', 'other', undefined]) {
    assert.equal(wordsOf(CATALOGS, language, 'panel.size', { count: 2, name: 'a' }), '2 frames of a')
  }
  assert.equal(wordsOf(CATALOGS, 'fr', 'info.new', { count: 2 }, 'the server’s {count}'), 'the server’s {count}')
  assert.equal(wordsOf({}, 'fr', 'panel.size', {}, 'panel.size'), 'panel.size')
})
