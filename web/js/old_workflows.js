// Opens workflows that older versions of the pack have saved: the host assigns the values of widgets by their position.

import { app } from '../../../scripts/app.js'
import { withoutWindowNoise } from './core/old_workflows.js'

function beforeRegisterNodeDef(nodeType, { name }) {
  if (name !== 'TemporalUNetSVDSampler') return
  const { configure } = nodeType.prototype
  nodeType.prototype.configure = function (saved) {
    configure.call(this, withoutWindowNoise(saved))
  }
}

app.registerExtension({ name: 'TemporalUNet.OldWorkflows', beforeRegisterNodeDef })
