"""GET routes by which the browser asks about a model file before a run, under the name that the node shows.

    /temporal_unet/unet_info?name=…&weight_dtype=…&width=…&height=…&frames=…    (name alone is required)
    /temporal_unet/controlnet_info?name=…

Both answer {"lines": [text, …]}, the former for a video model also "clip": {bytes, frames, width, height, window}, as
`unet_file_info` says; or {"error": text} with the message that a run would end with. Status 404: no such file is in the host's
lists; 400: a parameter is out of range; 503: the disk does not answer. Only the file's header is read.
"""

from aiohttp import web

from ....unet import UNetFileError
from .file_info import describe_controlnet_file, unet_file_info
from .file_questions import FileQuestions, NoAnswer
from .model_files import WEIGHT_DTYPES, controlnet_names, controlnet_path, quoted, unet_names, unet_path

QUESTIONS = FileQuestions()
CLIP = {"width": (1024, 16384), "height": (576, 16384), "frames": (14, 4096)}  # parameter -> (default, highest)


def add_routes(routes: web.RouteTableDef) -> None:
    """Adds both to the host's `PromptServer.instance.routes`."""
    routes.get("/temporal_unet/unet_info")(unet_info)
    routes.get("/temporal_unet/controlnet_info")(controlnet_info)


async def unet_info(request: web.Request) -> web.Response:
    options = WEIGHT_DTYPES.get(request.query.get("weight_dtype", "default"))
    numbers = [_number(request.query, name) for name in CLIP]
    clip = [number for number in numbers if number is not None]
    if options is None or clip != numbers:
        return web.json_response({"error": "weight_dtype, width, height or frames is out of range"}, status=400)
    return await _answer(request, unet_names, lambda name: unet_file_info(unet_path(name), options, *clip))


async def controlnet_info(request: web.Request) -> web.Response:
    return await _answer(request, controlnet_names, lambda name: {"lines": describe_controlnet_file(controlnet_path(name))})


async def _answer(request, list_names, info):
    name = request.query.get("name", "")
    try:
        return await QUESTIONS.ask(f"{list_names.__name__} {name}", lambda: _look(name, list_names, info))
    except NoAnswer:
        error = (
            f"{quoted(name)}: the disk has not answered for {QUESTIONS.patience:g} s. Check it, or the network that it is on, and "
            f"press R to ask again."
        )
        return web.json_response({"error": error}, status=503)


def _look(name, list_names, info):
    if name not in list_names():
        return web.json_response({"error": "no such file in the host's lists"}, status=404)
    try:
        return web.json_response(info(name))
    except UNetFileError as error:
        return web.json_response({"error": str(error)})
    except OSError as error:
        reason = error.strerror or "it is not a regular file, or a link that leads nowhere"  # none where the host finds no file
        return web.json_response({"error": f"{quoted(name)} cannot be read: {reason}. Correct this, or choose another file."})


def _number(query, name: str) -> int | None:
    """The parameter, its default where it is not given, None where it is not a whole number in its range."""
    default, highest = CLIP[name]
    text = query.get(name, str(default))
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= highest else None
