"""The panels of the loaders: what they show of a file before a run, for which clip, in which language, and hostile names."""

import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

LOADER, CONTROL_LOADER, CONDITIONING = "TemporalUNetLoader", "TemporalUNetControlNetLoader", "TemporalUNetSVDConditioning"
CHECKPOINT_LOADER = "TemporalUNetCheckpointLoader"
COMBOS = {LOADER: "unet_name", CONTROL_LOADER: "control_net_name", CHECKPOINT_LOADER: "ckpt_name"}
HOSTILE = "<img src=x onerror=harmed=1>.safetensors"
MINIATURE = "miniature_svd.safetensors"
BROKEN = ("half_svd.safetensors", HOSTILE)  # SVD without some temporal layers, a LoRA
LONG = ("stable_video_diffusion_img2vid_xt_1_1.safetensors", "controlnet_depth_svd_temporal.safetensors")  # names as they are
OLD_NAME = "checkpoints/old.safetensors"  # as version 0.1.0 named a file in a folder of diffusion_models
TOO_LONG = "a long name " * 100  # of no file; in no font does the text that names it fit
TIMEOUT = 20_000  # ms
TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


LOADERS = {
    "1": node(LOADER, unet_name=MINIATURE, weight_dtype="default"),
    "2": node(CONTROL_LOADER, control_net_name="miniature_svd_controlnet_path.safetensors"),
    "3": node("PreviewAny", source=["1", 1]),
    "4": node("PreviewAny", source=["2", 1]),
    "10": node(CHECKPOINT_LOADER, ckpt_name=MINIATURE, weight_dtype="default"),
    "11": node("PreviewAny", source=["10", 4]),
}
CLIP = {
    **LOADERS,
    "5": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
    "6": node("VAELoader", vae_name="miniature_vae.safetensors"),
    "7": node(
        CONDITIONING, init_image=["5", 0], vae=["6", 0], width=128, height=64, video_frames=6, motion_bucket_id=127, fps=6,
        augmentation_level=0.0, seed=0, resize="crop",
    ),
    "8": node(
        "TemporalUNetSVDSampler", model=["1", 0], positive=["7", 0], negative=["7", 1], latent_image=["7", 2], seed=0, steps=1,
        min_cfg=1.0, max_cfg=2.5, guidance="linear", sampler_name="euler", scheduler="karras", denoise=1.0,
    ),
}


@pytest.fixture(scope="module")
def files(server):
    """Files that cannot be used, next to the good ones."""
    unets, controlnets = server.base / "models" / "diffusion_models", server.base / "models" / "controlnet"
    with safe_open(unets / MINIATURE, "pt") as file:
        half = {name: file.get_tensor(name) for name in file.keys() if not ("middle" in name and ".time_stack." in name)}
        save_file(half, unets / BROKEN[0], file.metadata())
    save_file({f"lora_unet_mid_proj_in.lora_{end}.weight": torch.zeros(4, 4) for end in ("up", "down")}, unets / HOSTILE)
    shutil.copy(unets / HOSTILE, controlnets / HOSTILE)
    shutil.copy(unets / MINIATURE, unets / LONG[0])
    (unets / OLD_NAME).parent.mkdir(exist_ok=True)
    shutil.copy(unets / MINIATURE, unets / OLD_NAME)
    shutil.copy(controlnets / "miniature_svd_controlnet_path.safetensors", controlnets / LONG[1])
    whole = (controlnets / "miniature_svd_controlnet_path.safetensors").read_bytes()
    (controlnets / "cut.safetensors").write_bytes(whole[:100_000])


class Panel:
    """The panel of the only node of a type."""

    def __init__(self, editor, node_type):
        self.editor, self.page, self.node_type = editor, editor.page, node_type
        node = f"app.canvas.graph._nodes.find((node) => node.type === '{node_type}')"
        self.element = f"{node}.widgets.find((widget) => widget.name.startsWith('file_info')).element"

    def choose(self, name, widget=None):
        self.editor.set_widget(self.node_type, widget or COMBOS[self.node_type], name)

    def wait_for(self, words, timeout=TIMEOUT):
        self.page.wait_for_function(f"(words) => {self.element}.textContent.includes(words)", arg=words, timeout=timeout)
        return self

    def wait_gone(self, words):
        self.page.wait_for_function(f"(words) => !{self.element}.textContent.includes(words)", arg=words, timeout=TIMEOUT)
        return self

    @property
    def lines(self):
        rows = f"{self.element}.firstElementChild.firstElementChild"
        return self.page.evaluate(f"() => [...{rows}.children].map((row) => row.textContent)")

    @property
    def overflow(self):
        """Pixels of its text that cannot be seen."""
        text = f"{self.element}.firstElementChild"
        return self.page.evaluate(f"() => {text}.scrollHeight - {text}.clientHeight")

    @property
    def fades(self):
        return self.page.evaluate(f"() => getComputedStyle({self.element}.firstElementChild).maskImage !== 'none'")

    @property
    def colors(self):
        """[color of the text, color of its background], as red, green and blue."""
        return self.page.evaluate(f"""() => {{
            const words = {self.element}.firstElementChild.firstElementChild.firstElementChild
            const context = new OffscreenCanvas(1, 1).getContext('2d', {{willReadFrequently: true}})
            const rgb = (color) => {{
                context.fillStyle = color
                context.fillRect(0, 0, 1, 1)
                return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
            }}
            let behind = words
            while (behind && getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement
            const node = LiteGraph.vueNodesMode ? getComputedStyle(behind).backgroundColor : LiteGraph.NODE_DEFAULT_BGCOLOR
            return [getComputedStyle(words).color, node].map(rgb)
        }}""")


@pytest.fixture
def panel(editor, files):
    editor.load_api(LOADERS, "info")
    editor.page.evaluate("() => app.refreshComboInNodes()")  # the files are newer than the page
    return lambda node_type: Panel(editor, node_type)


def contrast(colors):
    """WCAG 2: https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio"""
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in color)]
        return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, colors))
    return (high + 0.05) / (low + 0.05)


def texts(editor, server):
    """What the `info` outputs say when it is run, in lines."""
    entry = server.wait(editor.run({LOADER: {"weight_dtype": editor.widget(LOADER, "weight_dtype")}}), 60)
    return [entry["outputs"][id]["text"][0].split("\n") for id in ("3", "4", "11")]


MEMORY = re.compile(r"about 247\.8 MiB of your [0-9.,]+ [GM]iB, weights included, for 14 frames of 1024x576, in windows of 8")


@pytest.mark.slow
def test_it_shows_before_a_run_what_the_info_output_says_after_it(editor, server, panel):
    unet, control = panel(LOADER).wait_for("Stable Video"), panel(CONTROL_LOADER).wait_for("SVD ControlNet")
    checkpoint = panel(CHECKPOINT_LOADER).wait_for("Stable Video")
    before = unet.lines, control.lines, checkpoint.lines
    unet_info, control_info, checkpoint_info = texts(editor, server)
    assert before[0][:-1] == unet_info
    assert before[1] == control_info
    assert before[2][:-1] == checkpoint_info
    assert [bool(MEMORY.fullmatch(lines[-1])) for lines in before] == [True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_an_unusable_unet_is_reported_with_the_text_of_the_error(editor, server, panel, name):
    panel(LOADER).choose(name)
    [reported] = panel(LOADER).wait_for(name).lines
    assert reported == error_when_queued(editor, server, "1")


@pytest.mark.parametrize("name", ["cut.safetensors", HOSTILE])
def test_an_unusable_controlnet_is_reported_with_the_text_of_the_error(editor, server, panel, name):
    panel(CONTROL_LOADER).choose(name)
    [reported] = panel(CONTROL_LOADER).wait_for(name).lines
    assert reported == error_when_queued(editor, server, "2")


def error_when_queued(editor, server, node_id):
    """What is said of a node when it is queued."""
    answer = editor.page.evaluate("async () => app.api.queuePrompt(0, await app.graphToPrompt())")
    server.wait(answer["prompt_id"], 60)  # of what does not depend on it
    [text] = {error["details"].split(" - ", 1)[1] for error in answer["node_errors"][node_id]["errors"]}
    return text


def test_the_memory_is_for_the_clip_and_the_dtype_of_the_graph(editor, files):
    editor.load_api(CLIP, "info")
    panel = Panel(editor, LOADER).wait_for("for 6 frames of 128x64")
    whole = panel.lines[3]
    panel.choose("fp16", "weight_dtype")
    panel.wait_for("float16")
    assert float(panel.lines[3].split()[0]) == pytest.approx(float(whole.split()[0]) / 2, rel=0.02)
    editor.set_widget(CONDITIONING, "video_frames", 20)
    editor.page.evaluate(f"() => {TRACKER}.captureCanvasState()")  # as after a click
    panel.wait_for("for 20 frames of 128x64, in windows of 8")


def test_a_typed_size_is_followed_at_once(editor, files):
    editor.load_api(CLIP, "info")
    panel = Panel(editor, LOADER).wait_for("for 6 frames of 128x64")
    editor.look_at(CONDITIONING)
    page = editor.page
    if editor.renderer == "nodes2":
        field = page.locator('[data-node-id="7"] [aria-label="width"] input')
        field.click(force=True)  # something lies over it that drags its value
        page.wait_for_timeout(200)  # until the panel has followed the click
        page.keyboard.press("Control+a")
    else:
        page.mouse.click(*page.evaluate("""() => {
            const node = app.graph.getNodeById(7)
            const widget = node.widgets.find(({name}) => name === 'width')
            const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10])
            const box = app.canvas.canvas.getBoundingClientRect()
            return [x + box.left, y + box.top]
        }"""))
        page.locator(".graphdialog input").fill("")
    page.keyboard.type("256")
    page.keyboard.press("Enter")
    panel.wait_for("for 6 frames of 256x64", 4000)
    assert editor.widget(CONDITIONING, "width") == 256


def test_a_linked_number_of_frames_is_that_of_the_primitive_and_else_it_is_not_known(editor, files):
    linked = {**CLIP, "7": {**CLIP["7"], "inputs": {**CLIP["7"]["inputs"], "video_frames": ["9", 0]}}}
    editor.load_api({**linked, "9": node("PrimitiveInt", value=40)}, "info")
    panel = Panel(editor, LOADER).wait_for("for 40 frames of 128x64, in windows of 8")
    editor.set_widget("PrimitiveInt", "value", 20)
    editor.page.evaluate(f"() => {TRACKER}.captureCanvasState()")  # as after a click
    panel.wait_for("for 20 frames of 128x64, in windows of 8")
    linked["7"]["inputs"]["video_frames"] = ["9", 2]
    editor.load_api({**linked, "9": node("GetImageSize", image=["5", 0])}, "info")
    lines = Panel(editor, LOADER).wait_for("from another node").lines
    assert lines[4] == "memory not known before the run: number of frames from another node"
    assert "Stable Video Diffusion" in lines[0] and not [line for line in lines if "14 frames" in line]


def test_in_a_subgraph_the_file_and_the_clip_are_those_on_the_subgraph_node(editor, files):
    editor.load_api(CLIP, "info")
    page = editor.page
    page.evaluate("""(values) => {
        const {node} = app.graph.convertToSubgraph(new Set(app.graph._nodes))
        for (const [type, name, value] of values) {
            const inner = node.subgraph._nodes.find((node) => node.type === type)
            const slot = inner.inputs.find((input) => input.name === name)
            node.subgraph.addInput(name, String(slot.type)).connect(slot, inner)
            const widget = node.widgets.find((widget) => widget.name === name)
            widget.value = value
            widget.callback?.(value)
        }
        window.outer = node
        app.canvas.openSubgraph(node.subgraph, node)
    }""", [[LOADER, "unet_name", MINIATURE], [CONDITIONING, "video_frames", 20]])
    try:
        lines = Panel(editor, LOADER).wait_for("for 20 frames of 128x64").lines
        assert f"{MINIATURE}, " in lines[2]
        missing = "checkpoints/away.safetensors"
        page.evaluate("(name) => { outer.widgets.find((widget) => widget.name === 'unet_name').value = name }", missing)
        page.evaluate(f"() => {TRACKER}.captureCanvasState()")
        Panel(editor, LOADER).wait_for("away.safetensors is not in models/checkpoints.")
    finally:
        page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


@pytest.mark.slow
def test_a_hostile_name_stays_text(editor, panel):
    panel(LOADER).choose(HOSTILE)
    panel(LOADER).wait_for(f"{HOSTILE}: it holds a LoRA")
    assert editor.page.evaluate("() => window.harmed") is None
    assert editor.page.evaluate(f"() => {panel(LOADER).element}.querySelector('img')") is None


def test_a_name_that_the_list_does_not_offer_is_looked_up_and_a_list_without_files_says_where_they_go(editor, files):
    editor.load_api({**LOADERS, "1": node(LOADER, unet_name=OLD_NAME, weight_dtype="default")}, "info")
    Panel(editor, LOADER).wait_for("old.safetensors, 9.8 MiB")
    hostile = "../../../etc/<b>passwd</b>"
    editor.load_api({**LOADERS, "1": node(LOADER, unet_name=hostile, weight_dtype="default")}, "info")
    [reported] = Panel(editor, LOADER).wait_for(hostile).lines
    assert reported == f"{hostile} is not in models/diffusion_models. Put it there and press R, or choose another file."
    Panel(editor, LOADER).choose(None)  # as a workflow saves it that was made before there was a file
    [reported] = Panel(editor, LOADER).wait_for("No file").lines
    assert reported == "No file is there to choose. Put one in models/checkpoints, models/diffusion_models and press R."


@pytest.mark.slow
def test_it_is_not_saved_and_a_reopened_workflow_shows_its_own_file(editor, panel):
    panel(LOADER).choose("untrained_sdxl.safetensors")
    panel(LOADER).wait_for("Stable Diffusion XL")
    workflow = editor.workflow()
    [values] = [node["widgets_values"] for node in workflow["nodes"] if node["type"] == LOADER]
    assert values == ["untrained_sdxl.safetensors", "default"]
    editor.load_api(LOADERS, "other")
    panel(LOADER).wait_for("Stable Video Diffusion")
    editor.load_template(workflow, "reopened")
    panel(LOADER).wait_for("Stable Diffusion XL")


@pytest.mark.slow
def test_its_text_is_no_edit_so_undo_and_redo_go_step_by_step(editor, panel):
    page = editor.page
    saved, drawn = "() => [...app.graph.getNodeById(1).serialize().size]", "() => app.graph.getNodeById(1).size[1]"
    queues = "() => (({undoQueue, redoQueue}) => [undoQueue.length, redoQueue.length])" f"({TRACKER})"
    capture = "() => { app.canvas.emitBeforeChange(); app.canvas.emitAfterChange() }"  # as after a click
    editor.look_at(LOADER)
    page.evaluate(capture)
    (steps, _), size, height = page.evaluate(queues), page.evaluate(saved), page.evaluate(drawn)
    for name in (BROKEN[0], "untrained_sdxl.safetensors"):
        panel(LOADER).choose(name)
        page.evaluate(capture)
    panel(LOADER).wait_for("Stable Diffusion XL")
    page.wait_for_function(f"(height) => ({drawn})() < height", arg=height)  # its text is shorter: no empty lines

    def settle(keys, words, expected):
        page.keyboard.press(keys)
        panel(LOADER).wait_for(words)
        page.wait_for_function(f"() => !{TRACKER}._restoringState && {panel(LOADER).element}.isConnected")  # not a dead node's
        editor.drawn()
        page.evaluate(capture)
        assert page.evaluate(queues) == expected
        assert page.evaluate(saved) == size

    settle("Control+z", "missing", [steps + 1, 1])
    settle("Control+z", "Stable Video Diffusion", [steps, 2])
    settle("Control+Shift+Z", "missing", [steps + 1, 1])
    settle("Control+Shift+Z", "Stable Diffusion XL", [steps + 2, 0])


@pytest.mark.slow
def test_its_text_is_no_edit_either_of_a_node_that_is_drawn_again_after_leaving_a_subgraph(editor, panel):
    saved, page = "() => [...app.graph.getNodeById(1).serialize().size]", editor.page
    editor.look_at(LOADER)
    panel(LOADER).wait_for("Stable Video Diffusion")
    editor.drawn()
    page.evaluate(f"() => {TRACKER}.captureCanvasState()")  # as a click does
    size, [_, top, _, bottom] = page.evaluate(saved), editor.node_boxes()["1"]
    page.evaluate("""() => {
        const {node} = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(3)]))
        app.canvas.openSubgraph(node.subgraph, node)
    }""")
    page.wait_for_function(f"() => !{panel(LOADER).element.replace('app.canvas.graph', 'app.rootGraph')}.checkVisibility()")
    page.evaluate("() => app.canvas.setGraph(app.rootGraph)")
    page.wait_for_function(f"() => {panel(LOADER).element}.checkVisibility()")
    editor.drawn()
    assert page.evaluate(saved) == size
    panel(LOADER).choose("untrained_sdxl.safetensors")  # fewer lines
    panel(LOADER).wait_for("Stable Diffusion XL")
    page.wait_for_function("(height) => app.graph.getNodeById(1).size[1] < height", arg=bottom - top - 35)  # less its title


@pytest.mark.slow
def test_what_is_wired_to_another_family_is_said_in_red_and_nothing_where_it_fits(editor, files):
    sampler = dict(seed=0, steps=1, cfg=1.0, sampler_name="euler", scheduler="karras", denoise=1.0)
    apply = "TemporalUNetApplyControlNetResiduals"
    editor.load_api({
        **CLIP, "1": node(LOADER, unet_name="untrained_sd15.safetensors", weight_dtype="default"),
        "9": node("FreeU_V2", model=["1", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2),
        "8": {**CLIP["8"], "inputs": {**CLIP["8"]["inputs"], "model": ["9", 0]}},
        "12": node("CLIPLoader", clip_name="untrained_clip_l.safetensors", type="stable_diffusion"),
        "13": node("CLIPTextEncode", text="", clip=["12", 0]),
        "14": node(apply, positive=["13", 0], negative=["13", 0], control_net=["2", 0], image=["5", 0]),
        "15": node("KSampler", model=["1", 0], positive=["14", 0], negative=["14", 1], latent_image=["7", 2], **sampler),
    }, "families")
    unet, control = Panel(editor, LOADER).wait_for("needs a model"), Panel(editor, CONTROL_LOADER).wait_for("not for")
    assert unet.lines[0].startswith("This is Stable Diffusion 1. SVD Temporal UNet Sampler needs a model of Stable Video")
    assert control.lines[0].startswith("This ControlNet is not for Stable Diffusion 1, which KSampler runs it with. ")
    red, green, blue = unet.colors[0]
    assert red > green and red > blue
    unet.choose(MINIATURE)
    control.wait_gone("not for")
    assert unet.lines[0] == "Stable Video Diffusion" and control.lines[0] == "SVD ControlNet"


@pytest.mark.slow
@pytest.mark.parametrize("opened_editor", ["nodes2"], indirect=True)
def test_panels_speak_the_language_of_the_editor_and_english_where_it_is_none_of_the_six(editor, panel):
    panel(LOADER).wait_for("weights included")
    try:
        for language, words in (("fr", "247,8 MiB"), ("zh", "权重"), ("ru", "247.8 MiB of your")):
            editor.choose_language(language)
            panel(LOADER).wait_for(words).wait_for("Stable Video Diffusion")
    finally:
        editor.choose_language("en")
        panel(LOADER).wait_for("weights included")


@pytest.mark.parametrize("opened_editor", ["classic"], indirect=True)  # in Nodes 2.0 the host's own nodes do change on opening
def test_an_opened_template_counts_as_unchanged(editor, files):
    template = "/api/workflow_templates/temporal-unet/6%20Try%20it%20without%20a%20download.json"
    editor.load_template(editor.server.get(template), "opened")
    Panel(editor, CHECKPOINT_LOADER).wait_for("Stable Video Diffusion")
    editor.drawn()
    editor.page.mouse.click(1500, 800)
    assert editor.page.evaluate(f"() => [{TRACKER}.undoQueue.length, {TRACKER}.workflow.isModified]") == [0, False]


def test_a_long_text_that_was_clicked_is_read_by_the_wheel_and_a_short_one_leaves_it_to_the_canvas(editor, panel):
    page = editor.page
    where = "() => [app.canvas.ds.scale, ...app.canvas.ds.offset].join()"
    text = f"{panel(LOADER).element}.firstElementChild"
    editor.look_at(LOADER)
    for name, words, scrolled in ((TOO_LONG, "is not in models", True), (MINIATURE, "Stable Video", False)):
        panel(LOADER).choose(name)
        panel(LOADER).wait_for(words)
        before = page.evaluate(where)
        place = page.evaluate(f"() => (({{x, y}}) => [x + 20, y + 20])({text}.getBoundingClientRect())")
        if scrolled:
            page.mouse.click(*place)
        else:
            page.mouse.click(1500, 800)
            page.mouse.move(*place)
        page.mouse.wheel(0, 30)
        done = f"([scrolled, before]) => scrolled ? {text}.scrollTop > 0 : ({where})() !== before"
        page.wait_for_function(done, arg=[scrolled, before])
        assert (page.evaluate(where) == before) is scrolled


@pytest.mark.usefixtures("panel")  # the files are newer than the page
def test_at_its_first_width_a_node_shows_all_of_a_usual_text(editor):
    inputs = {**CLIP["7"]["inputs"], "width": 1024, "height": 576, "video_frames": 1000}
    unet, control = node(LOADER, unet_name=LONG[0], weight_dtype="fp16"), node(CONTROL_LOADER, control_net_name=LONG[1])
    editor.load_api({**CLIP, "1": unet, "2": control, "7": node(CONDITIONING, **inputs)}, "info")
    reported = Panel(editor, LOADER).wait_for("for 1,000 frames of 1024x576, in windows of 8")
    assert "computed in float32" in reported.lines[1] and LONG[0] in reported.lines[2]
    for panel in (reported, Panel(editor, CONTROL_LOADER).wait_for(LONG[1])):
        editor.look_at(panel.node_type)
        assert panel.overflow <= 0 and not panel.fades, panel.lines


@pytest.mark.slow
def test_a_text_that_is_too_long_fades_until_it_is_scrolled_to_its_end(editor, panel):
    editor.look_at(LOADER)
    panel(LOADER).choose(TOO_LONG)
    reported = panel(LOADER).wait_for("is not in models")
    assert reported.overflow > 0 and reported.fades
    editor.page.evaluate(f"() => {reported.element}.firstElementChild.lastElementChild.scrollIntoView(false)")
    editor.drawn()
    assert not reported.fades


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_and_errors_have_enough_contrast(editor, panel, theme):
    editor.page.evaluate("(theme) => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
    try:
        editor.look_at(LOADER)
        panel(LOADER).wait_for("Stable Video Diffusion")
        assert contrast(panel(LOADER).colors) >= 4.5  # what WCAG asks for
        panel(LOADER).choose(BROKEN[0])
        panel(LOADER).wait_for("missing")
        assert contrast(panel(LOADER).colors) >= 4.5
    finally:
        editor.page.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
