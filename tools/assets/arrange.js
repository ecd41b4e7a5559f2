// Lays the graph out in titled columns from left to right, and adds a note.
// columns: [[title, width, [node title, ...]], ...]; heights: {node type: least height}; room: {node type: height to which it may
// grow}. Throws for a node that no column names.
// note: {text, property}, the latter for our note in another language. folders: {widget: folder in models/} and urls: {file:
// address} say where the editor may download a model file that is missing; examples: files that the pack brings for input/.
([columns, heights, room, note, folders, urls, examples]) => {
  const GAP = 80 // between nodes, one above the other: title bar and badge are drawn above a node's position
  const PADDING = 20
  const TOP = 60 // of a group: its own title and the first node's
  const BOTTOM = 50 // Nodes 2.0 draws nodes up to 30 higher
  // The sampler's seed alone makes another video; these act rarely, or are no seed.
  const FIXED = ['TemporalUNetSVDConditioning', 'TemporalUNetComputeControlNetResiduals', 'PrimitiveInt']
  const graph = app.graph

  const words = LiteGraph.createNode('MarkdownNote')
  words.title = 'Note'
  graph.add(words)
  words.widgets[0].value = note.text
  words.properties.temporal_unet_note = note.property

  const named = new Set(columns.flatMap(([, , titles]) => titles))
  const lost = graph._nodes.filter((node) => !named.has(node.title))
  if (lost.length) throw new Error(`no column names: ${lost.map((node) => node.title).join(', ')}`)

  let x = 0
  for (const [title, width, titles] of columns) {
    const nodes = titles.flatMap((name) => graph._nodes.filter((node) => node.title === name))
    if (!nodes.length) continue
    let y = 0
    for (const node of nodes) {
      node.pos = [x, y]
      node.setSize([width, Math.max(node.computeSize()[1], heights[node.type] ?? 0)])
      y += Math.max(node.size[1], room[node.type] ?? 0) + GAP
    }
    const group = new LiteGraph.LGraphGroup(title)
    group.pos = [x - PADDING, -TOP - PADDING]
    group.size = [width + 2 * PADDING, y - GAP + TOP + PADDING + BOTTOM]
    graph.add(group)
    x += width + 2 * PADDING + 40
  }
  for (const node of graph._nodes) {
    const models = node.widgets
      ?.filter(({ name, value }) => folders[name] && urls[value])
      .map(({ name, value }) => ({ name: value, url: urls[value], directory: folders[name] }))
    if (models?.length) node.properties.models = models
    const example = node.widgets?.find(({ value }) => examples.includes(value))
    if (example) node.properties.temporal_unet_example = example.value
    const after = node.widgets?.find((widget) => widget.name === 'control_after_generate')
    if (after && FIXED.includes(node.type)) after.value = 'fixed'
  }
}
