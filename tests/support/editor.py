"""The real editor in a real Chromium: opened on a running ComfyUI, in one of its two renderers, and listened to for errors."""
from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import shutil
import time
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, Request, sync_playwright

from tools.server import Server

RENDERERS = {"classic": False, "nodes2": True}  # name -> the setting Comfy.VueNodes.Enabled
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60_000  # ms, on a busy machine
QUIET = 100  # ms without a request, after which a page has loaded what it shows
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
READY = (
    "() => window.app?.vueAppReady && app.isGraphReady && app.extensionManager?.workflow?.activeWorkflow "
    "&& !app.extensionManager.spinner"
)
# What the browser and the host's own page say on every start, where it may not reach the internet, or of a file that is missing.
NOISE = re.compile("|".join((
    r"status of 404 .*/user\.css$",
    r"status of 404 .*/api/userdata\?dir=(workflows|subgraphs)&",
    r"status of 404 .*/api/userdata/comfy\.templates\.json$",
    r"status of 404 .*/temporal_unet/\w+_info\?",
    r"ComfyApp graph accessed before initialization",
    r"legacy queue/history menu is deprecated",
    r"^warning: \[MaskEditor\]",
    r"violates the .*Content Security Policy.*/assets/[\w-]+\.js$",  # the host's own scripts
    r"net::ERR_(NAME_NOT_RESOLVED|INTERNET_DISCONNECTED|CONNECTION_REFUSED|BLOCKED_BY_CSP) https://",
)))


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium. Raises FileNotFoundError where there is none."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        raise FileNotFoundError(
            f"tests/browser needs Chromium and found none of {', '.join(CHROMIUM_NAMES)} on the PATH: install it (Debian: "
            f"`apt-get install chromium`)."
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Editor:
    """The editor's page.

    `problems` are the page errors, and the console's errors and warnings that are not the host's noise. The server lets its page
    ask no address but its own (its Content Security Policy), so what the pack's scripts ask of another is among them.
    """

    def __init__(self, browser: Browser, server: Server, renderer: str, width: int = 1600, height: int = 900, **settings) -> None:
        self.server, self.renderer = server, renderer
        self.problems: list[str] = []
        server.post("/api/settings", {
            "Comfy.TutorialCompleted": True,
            "Comfy.InstalledVersion": importlib.metadata.version("comfyui-frontend-package"),
            "Comfy.VueNodes.Enabled": RENDERERS[renderer],
            "Comfy.Pointer.DoubleClickTime": 1000,  # ms, the most: on a busy machine the clicks may lie 300 apart
            **settings,
        })
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(PATIENCE)
        self.requests: set[Request] = set()  # under way
        self.page.on("request", lambda request: self.requests.add(request))
        for end in ("requestfinished", "requestfailed"):
            self.page.on(end, lambda request: self.requests.discard(request))
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.goto(server.url)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.page.wait_for_function(READY)

    def _console(self, message) -> None:
        text = f"{message.type}: {message.text} {message.location.get('url', '')}".strip()
        if message.type in ("error", "warning") and not NOISE.search(text):
            self.problems.append(text)

    def load_api(self, prompt: dict, name: str) -> None:
        """Open an API-mode workflow."""
        self.page.evaluate("([prompt, name]) => app.loadApiJson(prompt, name)", [prompt, name])
        self._settle()

    def load_template(self, workflow: dict, name: str) -> None:
        """Open an editor workflow as the browser of templates does."""
        self.page.evaluate("([w, name]) => app.loadGraphData(w, true, true, name, {openSource: 'template'})", [workflow, name])
        self._settle()

    def prompt(self) -> dict:
        """The API-mode workflow that the editor would send."""
        return self._graph("output")

    def workflow(self) -> dict:
        """The workflow that the editor would save."""
        return self._graph("workflow")

    def node_boxes(self) -> dict[str, list[float]]:
        """Where each node is drawn, in pixels of the page: id -> left, top, right, bottom."""
        return self.page.evaluate("""() => Object.fromEntries(app.graph._nodes.map((node) => {
            const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
            if (LiteGraph.vueNodesMode) return [node.id, [drawn.left, drawn.top, drawn.right, drawn.bottom]]
            const [x, y, width, height] = node.boundingRect
            const {left, top} = app.canvas.canvas.getBoundingClientRect()
            const {scale, offset} = app.canvas.ds
            const corner = [(x + offset[0]) * scale + left, (y + offset[1]) * scale + top]
            return [node.id, [...corner, corner[0] + width * scale, corner[1] + height * scale]]
        }))""")

    def look_at(self, node_type: str) -> None:
        """Bring the first node of this type into view, unscaled, clear of the page's own panels."""
        self.page.evaluate("""(type) => {
            const [x, y] = app.canvas.graph._nodes.find((node) => node.type === type).pos
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [400 - x, 120 - y]
            app.canvas.setDirty(true, true)
        }""", node_type)
        self.drawn()

    def widget(self, node_type: str, name: str):
        """The value of a widget of the first node of this type."""
        return self.page.evaluate("""([type, name]) => app.canvas.graph._nodes.find((node) => node.type === type)
            .widgets.find((widget) => widget.name === name).value""", [node_type, name])

    def set_widget(self, node_type: str, name: str, value) -> None:
        """Set a widget of the first node of this type, as the host does for the user."""
        self.page.evaluate("""([type, name, value]) => {
            const widget = app.canvas.graph._nodes.find((node) => node.type === type).widgets.find((widget) => widget.name === name)
            widget.value = value
            widget.callback?.(value)
        }""", [node_type, name, value])

    def choose_language(self, language: str) -> None:
        """Set the editor's language; back when the page speaks it: the host loads its texts meanwhile; the last loaded stays."""
        self.page.evaluate("(language) => app.extensionManager.setting.set('Comfy.Locale', language)", language)
        self.page.wait_for_function(
            "(language) => document.getElementById('vue-app').__vue_app__.config.globalProperties.$i18n.locale === language",
            arg=language)

    def run(self, values: dict[str, dict], preview_method: str = "default") -> str:
        """Set widgets (node type -> name -> value), queue the graph as the Run button does; the prompt's id.

        `preview_method`: the editor's setting of that name; by default the server's own, which is none.
        """
        return self.page.evaluate("""async ([values, previewMethod]) => {
            for (const [type, widgets] of Object.entries(values)) {
                const node = app.graph._nodes.find((node) => node.type === type)
                for (const [name, value] of Object.entries(widgets)) {
                    const widget = node.widgets.find((widget) => widget.name === name)
                    widget.value = value
                    widget.callback?.(value)
                }
            }
            return (await app.api.queuePrompt(0, await app.graphToPrompt(), {previewMethod})).prompt_id
        }""", [values, preview_method])

    def _graph(self, part: str) -> dict:
        """As JSON text: Playwright itself would give undefined values as None."""
        return json.loads(self.page.evaluate("async (part) => JSON.stringify((await app.graphToPrompt())[part])", part))

    def _settle(self) -> None:
        """Wait until images have loaded and the graph has been drawn."""
        deadline, quiet = time.monotonic() + 30, 0
        while quiet < QUIET and time.monotonic() < deadline:
            self.page.wait_for_timeout(QUIET / 4)
            quiet = 0 if self.requests else quiet + QUIET / 4
        assert quiet >= QUIET, f"still loading after 30 s: {[request.url for request in self.requests]}"
        self.drawn()

    def drawn(self) -> None:
        """Wait until the page has drawn what was last changed."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
