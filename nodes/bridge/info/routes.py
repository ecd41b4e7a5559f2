"""GET routes by which the browser asks about a model file before a run, under the name that the node shows.

    /temporal_unet/checkpoint_info?name=…&weight_dtype=…&width=…&height=…&frames=…&window_frames=…    (name alone is required)
    /temporal_unet/unet_info?…                                                                         (the same)
    /temporal_unet/controlnet_info?name=…

They answer {"lines": [{key, values, text}, …], …} with what `unet_file_info` and `controlnet_file_info` say besides, `key` being
one of `TEMPLATES` in lines.py; or {"error": text} with the message that a run would end with. Status 404: no such file is in the
host's lists; 400: a parameter is out of range; 403: a page of another site asks; 503: the disk does not answer. Only the file's
header is read.
"""

from functools import wraps

from aiohttp import web

from ....unet import UNetFileError
from .file_checks import fault
from .file_info import Clip, checkpoint_file_info, controlnet_file_info, unet_file_info
from .file_questions import QUESTIONS, NoAnswer
from .model_files import (
    WEIGHT_DTYPES,
    checkpoint_path,
    controlnet_names,
    controlnet_path,
    quoted,
    unet_path,
    valid_checkpoint_names,
    valid_unet_names,
)
from .origins import is_foreign

CLIP = {  # parameter -> (default, least, most), in the order of Clip
    "width": (1024, 1, 16384), "height": (576, 1, 16384), "frames": (14, 1, 4096), "window_frames": (0, 0, 4096),
}


def add_routes(routes: web.RouteTableDef) -> None:
    """Adds them to the host's `PromptServer.instance.routes`."""
    for answer in (checkpoint_info, unet_info, controlnet_info):
        routes.get(f"/temporal_unet/{answer.__name__}")(_for_own_pages(answer))


def _for_own_pages(answer):
    @wraps(answer)
    async def asked(request: web.Request) -> web.Response:
        if is_foreign(request):
            return web.json_response({"error": "only pages of this server may ask"}, status=403)
        return await answer(request)

    return asked


async def checkpoint_info(request: web.Request) -> web.Response:
    def info(name, *about):
        return checkpoint_file_info(checkpoint_path(name), *about)

    return await _model_info(request, valid_checkpoint_names, info)


async def unet_info(request: web.Request) -> web.Response:
    return await _model_info(request, valid_unet_names, lambda name, *about: unet_file_info(unet_path(name), *about))


async def controlnet_info(request: web.Request) -> web.Response:
    return await _answer(request, controlnet_names, lambda name: controlnet_file_info(controlnet_path(name)))


async def _model_info(request, list_names, info):
    options = WEIGHT_DTYPES.get(request.query.get("weight_dtype", "default"))
    numbers = [_number(request.query, name) for name in CLIP]
    clip = [number for number in numbers if number is not None]
    if options is None or clip != numbers:
        return web.json_response({"error": "weight_dtype, width, height, frames or window_frames is out of range"}, status=400)
    return await _answer(request, list_names, lambda name: info(name, options, Clip(*clip)))


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
    except (UNetFileError, OSError) as error:
        return web.json_response({"error": fault(name, error)})


def _number(query, name: str) -> int | None:
    """The parameter, its default where it is not given, None where it is not a whole number in its range."""
    default, least, most = CLIP[name]
    text = query.get(name, str(default))
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 and least <= int(text) <= most else None
