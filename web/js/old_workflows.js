// Opens workflows that older versions of the pack have saved: the host assigns the values of widgets by their position.

import { app } from '../../../scripts/app.js'
import { hasChanged, withoutGone } from './core/gone_values.js'

function beforeRegisterNodeDef(nodeType, { name }) {
  if (!hasChanged(name)) return
  const { configure } = nodeType.prototype
  nodeType.prototype.configure = function (saved) {
    configure.call(this, withoutGone(name, saved))
  }
}

app.registerExtension({ name: 'TemporalUNet.OldWorkflows', beforeRegisterNodeDef })
