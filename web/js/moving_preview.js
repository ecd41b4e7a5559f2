// The moving preview of SVD Temporal UNet Sampler: all frames of the clip while they form, from the server's sheets, and after the
// run the clip, until the next run or until it is closed. What a run reports comes to it from preview_events.js.

import { caption, cellOf, cornerOf, frameAt, frameUnder, imageHeight, spansOf, timeOf } from './core/preview_frames.js'
import { t } from './texts.js'
import { MARGIN, addWidget, element, growNode } from './widget.js'

const TALLEST = 4096 // pixels of the whole, in a node that is drawn out
const BELOW = 32 // pixels for the bar and the words
const WINDOW_COLOR = '#4a9de0'
const UNKNOWN_SHAPE = { width: 16, height: 9 } // until the first sheet

export class Preview {
  constructor(node) {
    this.node = node
    this.about = null // what the events of this run said last: prompt_id, node_id, step, steps, frames, fps
    this.frame = undefined // chosen by hand
    this.closed = undefined // the prompt_id of the run whose preview was closed last
    this.start = 0 // when the first frame was last shown, in the clock of requestAnimationFrame
    this.playing = false // a call of `draw` is due
    this.build()
    this.begin()
    this.listen()
    this.followHeight()
    const heights = () => (this.about ? [this.height + 2 * MARGIN, TALLEST] : [0, 0])
    addWidget(node, 'moving_preview', 'TEMPORAL_UNET_PREVIEW', this.element, heights)
    growNode(node)
  }

  build() {
    this.element = element('div', {
      display: 'none',
      position: 'relative',
      flexDirection: 'column',
      gap: '5px',
      boxSizing: 'border-box',
      height: '100%'
    })
    this.element.dataset.testid = 'temporal-unet-preview'
    this.canvas = element('canvas', {
      flex: '1 1 0',
      minHeight: '0',
      width: '100%',
      objectFit: 'contain',
      borderRadius: '6px',
      background: 'rgb(0 0 0 / 25%)',
      cursor: 'ew-resize',
      touchAction: 'none'
    })
    this.bar = element('div', {
      flex: 'none',
      position: 'relative',
      height: '6px',
      borderRadius: '3px',
      overflow: 'hidden',
      background: 'var(--border-color)'
    })
    this.head = element('div', { position: 'absolute', top: '0', bottom: '0', width: '3px', background: 'var(--input-text)' })
    this.words = element('div', { flex: 'none', font: '12px/16px sans-serif', textAlign: 'center', color: 'var(--input-text)' })
    this.cross = element('button', {
      position: 'absolute',
      top: '6px',
      right: '6px',
      width: '20px',
      height: '20px',
      padding: '0',
      border: '0',
      borderRadius: '50%',
      font: '12px/20px sans-serif',
      color: 'white',
      background: 'rgb(0 0 0 / 55%)',
      cursor: 'pointer'
    })
    this.cross.textContent = '✕'
    this.element.append(this.canvas, this.bar, this.words, this.cross)
    Object.assign(this.cross, { type: 'button', title: t('preview.close'), ariaLabel: t('preview.close') })
    Object.assign(this.canvas, { tabIndex: 0, role: 'img', ariaLabel: t('preview.frames'), title: t('preview.hint') })
  }

  listen() {
    const choose = (frame) => {
      this.frame = frame
      this.write()
    }
    const chooseUnder = (event) => {
      const { left, width } = this.canvas.getBoundingClientRect()
      choose(frameUnder(event.clientX, left, width, this.about.frames))
    }
    const release = () => {
      if (this.frame === undefined) return
      this.start = performance.now() - timeOf(this.frame, this.about.fps) * 1000
      this.frame = undefined
      this.write()
    }
    this.canvas.addEventListener('pointerdown', (event) => {
      if (event.button !== 0) return
      event.stopPropagation() // else the node would be dragged
      this.canvas.setPointerCapture(event.pointerId) // also beyond the edges
      chooseUnder(event)
    })
    this.canvas.addEventListener('mousedown', (event) => event.preventDefault()) // the focus would stay here
    this.canvas.addEventListener('pointermove', (event) => {
      if (this.frame !== undefined && event.buttons & 1) chooseUnder(event)
    })
    const dismiss = (event) => {
      if (!this.ended) return // the next step would bring it back
      event.stopPropagation()
      this.close()
    }
    this.canvas.addEventListener('dblclick', dismiss)
    this.cross.addEventListener('click', dismiss)
    this.cross.addEventListener('pointerdown', (event) => event.stopPropagation()) // else the node would be dragged
    this.canvas.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') return dismiss(event)
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
      if (!way) return
      event.preventDefault()
      event.stopPropagation() // else the host would move what is selected
      const { frames, fps } = this.about
      choose(((this.frame ?? frameAt((performance.now() - this.start) / 1000, fps, frames)) + way + frames) % frames)
    })
    for (const name of ['pointerup', 'pointercancel', 'blur']) this.canvas.addEventListener(name, release)
    new ResizeObserver(() => this.play()).observe(this.canvas) // when it is visible again
  }

  followHeight() {
    const { onResize, onSerialize } = this.node
    this.node.onResize = (size) => {
      onResize?.call(this.node, size)
      this.resized(size)
    }
    this.node.onSerialize = (saved) => {
      // else the host's undo, and a file, would keep the room of the preview
      onSerialize?.call(this.node, saved)
      saved.size = this.sizeWithout(saved.size)
    }
  }

  get height() {
    return imageHeight(this.node.size[0] - 2 * MARGIN, this.sheet ?? UNKNOWN_SHAPE) + BELOW
  }

  /** Shows what an event of the server brings. */
  take(event) {
    if (event.decoded && event.prompt_id === this.closed) return
    const opening = !this.about
    if (event.prompt_id !== this.about?.prompt_id) this.begin()
    const { step, steps } = this.about ?? {}
    this.about = event.decoded ? { ...event, step, steps } : event
    if (event.window) Object.assign(this, { window: event.window, atWork: event.at_work })
    if (event.image) this.load(event)
    if (event.decoded) this.ended = 'done'
    if (opening) this.open()
    this.write()
  }

  /** Nothing is known of a new run. `sheet` becomes the newest event with a sheet, `decoded` its image, `drawn` the cell shown. */
  begin() {
    Object.assign(this, { about: null, sheet: null, loading: null, window: undefined, atWork: undefined, ended: '' })
    this.canvas.getContext('2d').clearRect(0, 0, this.canvas.width, this.canvas.height)
  }

  async load(event) {
    const decoded = new Image()
    decoded.src = event.image
    this.loading = decoded
    try {
      await decoded.decode()
    } catch {
      return // it is not an image
    }
    if (!this.about || this.loading !== decoded) return // a newer one is on its way
    this.sheet = { ...event, decoded, drawn: -1 }
    this.fit()
    this.play()
  }

  open() {
    this.element.style.display = 'flex'
    this.closedHeight = this.node.size[1]
    this.fit()
  }

  /** The node grows where the preview needs it. */
  fit() {
    this.element.style.minHeight = `${this.height}px` // all that Nodes 2.0 needs
    if (LiteGraph.vueNodesMode) return
    const [width, height] = this.node.size
    const needed = this.node.computeSize()[1]
    if (height < needed || height === this.openHeight) this.node.setSize([width, needed])
    this.node.setDirtyCanvas(true, true)
  }

  /** The node has a new size: drawn out by hand, or else as high as the preview needs it: `openHeight`. */
  resized([, height]) {
    if (this.about && !this.isDrawnOut(height)) this.openHeight = height
    else Object.assign(this, { closedHeight: height, openHeight: null })
  }

  isDrawnOut(height) {
    if (LiteGraph.vueNodesMode) return this.element.offsetHeight > parseFloat(this.element.style.minHeight) + 1
    return height > this.node.computeSize()[1] + 1
  }

  /** The node's size without the room that was made for the preview. */
  sizeWithout([width, height]) {
    return [width, height === this.openHeight ? this.closedHeight : height]
  }

  /** Closes the preview, and takes away the room that was made for it. */
  close() {
    const size = this.sizeWithout(this.node.size)
    Object.assign(this, { closed: this.about.prompt_id, about: null, frame: undefined })
    this.element.style.display = 'none'
    this.node.setSize(size)
    this.node.setDirtyCanvas(true, true)
  }

  /** The run has left the sampler: "done", or "stopped" by an error or by hand. */
  end(how) {
    if (!this.about || this.ended) return
    Object.assign(this, { ended: how, window: undefined })
    this.write()
  }

  /** Plays as long as there is a sheet and the canvas is on the page. */
  play() {
    if (!this.playing) requestAnimationFrame(this.draw)
    this.playing = true
  }

  draw = (now) => {
    this.playing = false
    if (!this.about || !this.sheet || !this.canvas.checkVisibility()) return
    this.play()
    const { frames, fps, shown, width, height, decoded } = this.sheet
    const frame = this.frame ?? frameAt((now - this.start) / 1000, fps, frames)
    const cell = cellOf(frame, shown)
    this.head.style.left = `calc(${frames > 1 ? frame / (frames - 1) : 0} * (100% - 3px))`
    if (cell === this.sheet.drawn) return
    this.sheet.drawn = cell
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height })
    this.canvas.getContext('2d').drawImage(decoded, ...cornerOf(cell, this.sheet), width, height, 0, 0, width, height)
  }

  /** The words, and the window on the bar. */
  write() {
    this.words.textContent = caption({ ...this.about, frame: this.frame, window: this.window, atWork: this.atWork, ended: this.ended }, t)
    this.cross.style.display = this.ended ? '' : 'none'
    const spans = this.window ? spansOf(this.window, this.about.frames) : []
    const marks = spans.map(([start, end]) =>
      element('div', {
        position: 'absolute',
        top: '0',
        bottom: '0',
        left: `${start * 100}%`,
        width: `${(end - start) * 100}%`,
        background: WINDOW_COLOR
      })
    )
    this.bar.replaceChildren(...marks, this.head)
  }
}
