"""Which requests of a browser come from a page of another site.

The host refuses some of them: from 0.30 on those that a browser marks as cross-site, and those whose Origin is not the Host, where
that is this machine by a loopback name. What is left are pages of another port or of a site whose address differs only in front,
pages without an origin of their own (a file, a sandbox), servers reached by another name, and before 0.30 pages that load a route
as a script or an image, which sends no Origin.
"""

from urllib.parse import urlsplit

from aiohttp import web
from comfy.cli_args import args

OWN = ("same-origin", "none")  # none: the user typed the address


def is_foreign(request: web.Request) -> bool:
    """Does a page ask that is not of this server's origin, and not of the one that `--enable-cors-header` lets in?

    Programs that are no browsers send neither header and are none of these.
    """
    origin = request.headers.get("Origin")
    let_in = args.enable_cors_header
    if let_in is not None and let_in in ("*", origin):
        return False
    if request.headers.get("Sec-Fetch-Site", "none") not in OWN:
        return True
    return origin is not None and urlsplit(origin).netloc.lower() != request.host.lower()
