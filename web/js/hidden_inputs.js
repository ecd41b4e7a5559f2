// Hides the inputs of SVD Temporal UNet Sampler that few videos need: those of Video Options, and a curve that does not guide.

import { app } from '../../../scripts/app.js'
import { TAKEN_OVER, actsByItself, curveActs, isFromBefore } from './core/taken_over.js'
import { setShown } from './widget.js'

const NODE = 'TemporalUNetSVDSampler'
const ROW = 24 // pixels of an input in the classic renderer, with the gap to the next

class HiddenInputs {
  constructor(node) {
    this.node = node
    this.taken = TAKEN_OVER.map((name) => ({ name, widget: this.find(name), usual: this.find(name).value }))
    this.update()
    for (const { widget } of this.taken) this.after(widget, 'callback', () => this.update({ hide: false })) // it is being edited
    this.after(this.find('guidance'), 'callback', () => this.update())
    for (const change of ['onAdded', 'onConfigure', 'onConnectionsChange']) this.after(node, change, () => this.update())
  }

  find(name) {
    return this.node.widgets.find((widget) => widget.name === name)
  }

  /** Calls `then` once the object's own method, if it has one, has run. */
  after(object, method, then) {
    const original = object[method]
    object[method] = function (...args) {
      const result = original?.apply(this, args)
      then()
      return result
    }
  }

  isLinked(name) {
    return this.node.inputs.some((input) => input.widget?.name === name && input.link != null)
  }

  /** Shows and hides each input; without `hide` it only shows. */
  update({ hide = true } = {}) {
    const guides = curveActs(this.find('guidance').value, this.isLinked('guidance'), this.isLinked('guidance_curve'))
    const wanted = this.taken.map(({ name, widget, usual }) => [widget, actsByItself(widget.value, usual, this.isLinked(name))])
    for (const [widget, shown] of [[this.find('guidance_curve'), guides], ...wanted]) {
      if (shown || hide) setShown(this.node, widget, shown, ROW)
    }
  }
}

/** Takes the room of what is hidden now from a node of an older version. */
function beforeRegisterNodeDef(nodeType, { name }) {
  if (name !== NODE) return
  const { configure } = nodeType.prototype
  nodeType.prototype.configure = function (saved) {
    const tall = isFromBefore(saved) // asked first: the host completes what was saved
    configure.call(this, saved)
    if (!tall) return
    const hidden = this.widgets.filter((widget) => widget.hidden).length
    const [width, height] = this.size
    this.setSize([width, Math.max(this.computeSize()[1], height - hidden * ROW)])
  }
}

app.registerExtension({
  name: 'TemporalUNet.HiddenInputs',
  beforeRegisterNodeDef,
  nodeCreated(node) {
    if (node.constructor.comfyClass === NODE) new HiddenInputs(node)
  }
})
