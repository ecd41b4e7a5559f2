"""New nodes as the user gets them from the menu: as high as what they show, and wide enough for file names."""

import pytest

FRESH = """() => {
    app.graph.clear()
    app.graph.last_node_id = 1000 // the page keeps sizes by id, and other tests had nodes under the first ones
    const types = Object.keys(LiteGraph.registered_node_types).filter((type) => type.startsWith('TemporalUNet'))
    types.forEach((type, index) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        node.pos = [400 * (index % 12), 1300 * Math.floor(index / 12)] // two rows: all in view
    })
    app.canvas.ds.scale = 0.25 // all in view: what is not seen is not measured
    app.canvas.ds.offset = [300, 800]
    app.canvas.setDirty(true, true)
    return types
}"""
HEIGHTS = """() => Object.fromEntries(app.graph._nodes.map((node) => {
    const drawn = document.querySelector(`[data-node-id="${node.id}"]`)
    return [node.type, drawn ? drawn.offsetHeight : node.size[1]]
}))"""
LEAST = "() => app.graph._nodes.forEach((node) => node.setSize([node.size[0], LiteGraph.vueNodesMode ? 0 : node.computeSize()[1]]))"
# Pixels that a new sampler has beyond its inputs before the page has drawn it: by that the host arranges nodes of a prompt.
SPARE = """() => {
    const node = LiteGraph.createNode('TemporalUNetSVDSampler')
    return node.size[1] - node.computeSize()[1]
}"""
LOADERS = ("TemporalUNetCheckpointLoader", "TemporalUNetLoader", "TemporalUNetControlNetLoader")


@pytest.mark.slow
def test_a_new_node_is_as_high_as_what_it_shows_and_a_loader_as_wide_as_file_names(editor):
    types = editor.page.evaluate(FRESH)
    assert len(types) >= 12
    panels = "[...document.querySelectorAll('[data-testid=temporal-unet-info]')]"
    answered = f"(count) => {panels}.filter((panel) => panel.innerText.trim()).length === count"
    editor.page.wait_for_function(answered, arg=len(LOADERS))
    editor.drawn()
    heights = editor.page.evaluate(HEIGHTS)
    editor.page.evaluate(LEAST)
    editor.drawn()
    least = editor.page.evaluate(HEIGHTS)
    assert {type: height - least[type] for type, height in heights.items() if height - least[type] > 5} == {}
    widths = editor.page.evaluate("() => Object.fromEntries(app.graph._nodes.map((node) => [node.type, node.size[0]]))")
    assert min(widths[type] for type in LOADERS) >= 340
    assert abs(editor.page.evaluate(SPARE)) < 5
