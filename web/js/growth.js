// A widget whose height follows its text, without the host taking that for an edit of the workflow.
//
// The host compares saved sizes for its undo. So a node is saved with the size that it would have if the text were one line high,
// and grows when it is drawn: by itself in Nodes 2.0, by us in the classic renderer.

import { MARGIN } from './widget.js'

/** Keeps `root`, the element of a widget of the node, as high as `content`, at least `least` and at most `most` pixels. */
export class Growth {
  constructor(node, root, content, [least, most]) {
    Object.assign(this, { node, root, content, least, most, height: least })
    this.extra = 0 // pixels of the node's height that are not saved
    root.style.minHeight = `${least}px`
    new ResizeObserver(() => this.follow()).observe(content)
    const { onResize, onSerialize } = node
    const growth = this
    node.onResize = function (size) {
      if (!LiteGraph.vueNodesMode && size[1] > this.computeSize()[1]) growth.extra = 0 // the user made room
      return onResize?.call(this, size)
    }
    node.onSerialize = function (saved) {
      onSerialize?.call(this, saved)
      saved.size = [saved.size[0], growth.savedHeight(saved.size[1])]
    }
  }

  /** [least, most] pixels for the host: Nodes 2.0 measures the element itself. */
  get heights() {
    return [LiteGraph.vueNodesMode ? 0 : this.height + 2 * MARGIN]
  }

  follow() {
    this.settle()
    const wanted = Math.min(Math.max(this.content.offsetHeight, this.least), this.most)
    if (!this.content.offsetHeight || wanted === this.height) return // 0: not on the page
    const { node } = this
    const before = node.size[1] - this.extra
    this.height = wanted
    this.root.style.minHeight = `${wanted}px`
    if (LiteGraph.vueNodesMode) return
    const needed = node.computeSize()[1]
    const saved = Math.max(before, needed - (wanted - this.least))
    const height = Math.max(before, needed)
    node.setSize([node.size[0], height])
    this.extra = height - saved // after setSize, whose onResize is for the user's
    node.setDirtyCanvas(true, true)
  }

  /** In Nodes 2.0 a node that is drawn again, as after leaving a subgraph, was given the height that it last had, with ours. */
  settle() {
    const drawn = this.root.closest('[data-node-id]')
    if (!drawn || drawn === this.drawn) return
    this.drawn = drawn
    const height = parseFloat(drawn.style.getPropertyValue('--node-height'))
    drawn.style.setProperty('--node-height', `${height - this.extra}px`)
  }

  /**
   * The height to save of a node that is `height` pixels high. In Nodes 2.0 its element is asked, which the host follows a little
   * later: what its size is set to is a property of it.
   */
  savedHeight(height) {
    const drawn = this.root.closest('[data-node-id]')
    if (drawn?.offsetHeight) {
      const set = parseFloat(drawn.style.getPropertyValue('--node-height'))
      const withOneLine = Math.max(set, drawn.offsetHeight - (this.height - this.least))
      this.extra = height - (withOneLine - LiteGraph.NODE_TITLE_HEIGHT)
    }
    return height - this.extra
  }
}
