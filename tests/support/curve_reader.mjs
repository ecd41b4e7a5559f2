// Reads curves as the editor does: a JSON text on each line of the input, one line of JSON for each. See tests/host/test_curve_readers.py.

import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { wordsOf } from '../../web/js/core/catalog.js'
import { evaluateCurve, faultText, readCurve } from '../../web/js/core/curve_text.js'

const { temporalUnet: en } = JSON.parse(readFileSync(new URL('../../locales/en/main.json', import.meta.url), 'utf8'))
const words = (key, values = {}) => wordsOf({ en }, 'en', key, values)

for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const { points, fault } = readCurve(JSON.parse(line))
  const read = fault ? { error: faultText(fault, 'input', words) } : { points, values: evaluateCurve(points, 7) }
  process.stdout.write(`${JSON.stringify(read)}\n`)
}
