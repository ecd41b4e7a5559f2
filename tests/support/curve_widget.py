"""The curve editor below a text input, driven with mouse and keyboard, and a workflow that holds two of them."""

APPLY, SAMPLER = "TemporalUNetApplyControlNetResiduals", "TemporalUNetSVDSampler"
INPUTS = {APPLY: "frame_strengths", SAMPLER: "guidance_curve"}
# The element lies where it did when last asked, and nothing covers it.
STILL = """(element) => {
    const {x, y, width, height} = element.getBoundingClientRect()
    const place = [x, y, width, height].join()
    const still = place === element.place
    element.place = place
    return still && element.contains(document.elementFromPoint(x + width / 2, y + height / 2))
}"""


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


WORKFLOW = {  # all of it runs in a second; the two Preview as Text are its outputs
    "1": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
    "2": node("VAELoader", vae_name="untrained_vae.safetensors"),
    "3": node(
        "TemporalUNetSVDConditioning", init_image=["1", 0], vae=["2", 0], width=64, height=64, video_frames=3,
        motion_bucket_id=127, fps=6, augmentation_level=0.0, seed=0, resize="crop",
    ),
    "4": node("ControlNetLoader", control_net_name="untrained_sd15_controlnet.safetensors"),
    "5": node(
        APPLY, positive=["3", 0], negative=["3", 1], control_net=["4", 0], image=["1", 0], strength=1.0, start_percent=0.0,
        end_percent=1.0, frame_strengths="0:0, 1:1",
    ),
    "6": node("PreviewAny", source=["5", 0]),
    "7": node("TemporalUNetLoader", unet_name="untrained_svd.safetensors", weight_dtype="default"),
    "8": node(
        SAMPLER, model=["7", 0], positive=["3", 0], negative=["3", 1], latent_image=["3", 2], seed=0, steps=1, min_cfg=1.0,
        max_cfg=2.5, guidance="curve", sampler_name="euler", scheduler="karras", denoise=1.0, guidance_curve="0:1, 1:2",
        guidance_start=0.0,
        guidance_end=1.0, window_frames=0, window_overlap=6, closed_loop=False,
    ),
    "9": node("PreviewAny", source=["8", 0]),
}


class Curve:
    """The editor on the first node of a type, as a user sees it."""

    def __init__(self, editor, node_type):
        self.editor, self.page, self.node_type = editor, editor.page, node_type
        editor.look_at(node_type)
        self.page.evaluate("""(type) => {
            app.canvas.graph._nodes.find((node) => node.type === type).showAdvanced = true
        }""", node_type)  # Nodes 2.0 folds those inputs away
        self.element = self.page.locator(f".temporal-unet-curve[aria-label={INPUTS[node_type]}]:visible")
        self.element.wait_for()
        self.page.wait_for_function(STILL, arg=self.element.element_handle())
        self.handles = self.element.locator(".handle")

    @property
    def text(self):
        return self.editor.widget(self.node_type, INPUTS[self.node_type])

    @text.setter
    def text(self, text):
        self.editor.set_widget(self.node_type, INPUTS[self.node_type], text)

    @property
    def readout(self):
        return self.element.locator(".readout").text_content()

    @property
    def message(self):
        return self.element.locator(".message").text_content()

    def at(self, position, value):
        """Where on the page a point of the curve is, by the labels that the axis shows."""
        ticks = self.element.evaluate("""(element) => [...element.querySelectorAll('.grid text')]
            .map((label) => [Number(label.textContent), label.previousSibling.getBoundingClientRect()])
            .filter(([value]) => !Number.isNaN(value))
            .map(([value, box]) => [value, box.left, box.right, (box.top + box.bottom) / 2])""")
        (low, left, right, bottom), (high, _, _, top) = ticks[0], ticks[-1]
        return left + position * (right - left), bottom + (value - low) / (high - low) * (top - bottom)

    def drag(self, start, end):
        self.page.mouse.move(*self.at(*start))
        target = self.at(*end)  # before the button is down
        self.page.mouse.down()
        self.page.mouse.move(*target, steps=4)
        self.page.mouse.up()

    def line(self):
        """The drawn line's corners on the page."""
        return self.element.locator(".line").evaluate("""(line) => {
            const numbers = (line.getAttribute('d').match(/[-\\d.e]+/g) ?? []).map(Number)
            const corners = Array.from({length: numbers.length / 2}, (_, i) => new DOMPoint(numbers[2 * i], numbers[2 * i + 1]))
            return corners.map((corner) => corner.matrixTransform(line.getScreenCTM())).map(({x, y}) => [x, y])
        }""")


def type_text(strengths, text):
    """As a user does, in the field of the text."""
    page = strengths.page
    field = page.get_by_role("textbox", name="frame_strengths")
    if not field.count():  # the classic renderer opens one on its canvas
        page.mouse.dblclick(*page.evaluate("""() => {
            const node = app.graph.getNodeById(5)
            const widget = node.widgets.find(({name}) => name === 'frame_strengths')
            const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 200, node.pos[1] + widget.y + 10])
            const box = app.canvas.canvas.getBoundingClientRect()
            return [x + box.left, y + box.top]
        }"""))
        field = page.locator(".graphdialog input")
    field.fill(text)
    field.press("Enter")
