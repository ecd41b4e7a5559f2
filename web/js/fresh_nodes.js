// New nodes of ours in Nodes 2.0 get no room for the advanced inputs that they do not show: the host counts these in.

import { app } from '../../../scripts/app.js'

const ROW = 24 // pixels that the host counts for an input, with the gap to the next

app.registerExtension({
  name: 'TemporalUNet.FreshNodes',
  nodeCreated(node) {
    if (!LiteGraph.vueNodesMode || !node.comfyClass.startsWith('TemporalUNet')) return
    const unseen = (node.widgets ?? []).filter((widget) => widget.options?.advanced && !widget.hidden).length
    node.setSize([node.size[0], node.computeSize()[1] - unseen * ROW]) // what its content needs beyond that, the host adds
  }
})
