// Lays the graph out in titled columns from left to right; the node titled Files is a note with `text`.
// columns: [[title, width, [node title, ...]], ...]; heights: {node type: least height}. Throws for a node that no column names.
// folders: {widget: folder in models/} and urls: {file: address} say where the editor may fetch a model file that is missing.
([columns, heights, text, folders, urls]) => {
  const GAP = 80 // between nodes, one above the other: title bar and badge are drawn above a node's position
  const PADDING = 20
  const TOP = 60 // of a group: its own title and the first node's
  const BOTTOM = 50 // Nodes 2.0 draws nodes up to 30 higher
  // The sampler's seed alone makes another video; the conditioning's acts with augmentation only.
  const FIXED = ['TemporalUNetSVDConditioning', 'TemporalUNetComputeControlNetResiduals', 'PrimitiveInt']
  const graph = app.graph

  const note = LiteGraph.createNode('MarkdownNote')
  note.title = 'Files'
  graph.add(note)
  note.widgets[0].value = text

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
      y += node.size[1] + GAP
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
    const after = node.widgets?.find((widget) => widget.name === 'control_after_generate')
    if (after && FIXED.includes(node.type)) after.value = 'fixed'
  }
}
