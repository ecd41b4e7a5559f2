"""Write the English texts of the nodes, locales/en/nodeDefs.json, from the schemas of the running code, and what the panels say
about files, `info` in locales/en/main.json, from nodes/bridge/info/lines.py; copy the nodes' help pages.

    python dev.py make locales [-- --check]

It names each text that changed: those are to be translated again in the other languages,
which are kept by hand. With --check nothing is written, and the exit status is 1 where the file is behind the code.

The form is the one that the front end reads (ComfyUI serves every pack's at /api/i18n): node id -> display_name, description,
inputs (by their machine names) and outputs (by their indices), each with a name and, where it has one, a tooltip. The front end
reads no translation of a combo's options: they are values.

The names of the nodes' categories are `nodeCategories` in locales/*/main.json, kept by hand. The front end merges those of all
packs.

The help pages are written by hand in the six languages: web/docs/<node id>/<language>.md. The front end asks for the page of its
language, then for web/docs/<node id>.md, and never for another language's: that one is a copy of en.md, for readers of all other
languages. Addresses of images in a page begin with the node id, so that they fit in both places.
"""
from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

from support import host_in_process

LOCALES = host_in_process.ROOT / "locales"
DOCS = host_in_process.ROOT / "web" / "docs"
LANGUAGES = ("en", "zh", "ja", "ko", "fr", "es")
PREFIX = "TemporalUNet"  # every id of the pack begins with it


def path_of(language: str, name: str = "nodeDefs") -> Path:
    return LOCALES / language / f"{name}.json"


def read(language: str, name: str = "nodeDefs") -> dict:
    """What the pack serves in a language; empty where there is no file yet."""
    path = path_of(language, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(texts: dict, name: str) -> None:
    path_of("en", name).write_text(json.dumps(texts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def with_info(texts: dict, templates: dict) -> dict:
    """The texts of main.json with `info` as the code has it: `TEMPLATES` of nodes/bridge/info/lines.py."""
    return {**texts, "temporalUnet": {**texts["temporalUnet"], "info": dict(templates)}}


def outdated_help() -> list[Path]:
    """The pages en.md whose copy for other languages differs or is missing."""
    pages = sorted(DOCS.glob("*/en.md"))
    return [page for page in pages if not _copy(page).exists() or _copy(page).read_bytes() != page.read_bytes()]


def _copy(page: Path) -> Path:
    return DOCS / f"{page.parent.name}.md"


def node_defs() -> dict:
    """The English texts of the pack's nodes, from the host that host_in_process.boot has started."""
    import nodes as host_nodes

    return {node_id: _texts(node.GET_SCHEMA()) for node_id, node in sorted(host_nodes.NODE_CLASS_MAPPINGS.items())
            if node_id.startswith(PREFIX)}


def _texts(schema) -> dict:
    texts = {"display_name": schema.display_name, "description": schema.description}
    if schema.inputs:
        texts["inputs"] = {item.id: _slot(item.display_name or item.id, item.tooltip) for item in schema.inputs}
    if schema.outputs:
        texts["outputs"] = {str(index): _slot(item.display_name, item.tooltip) for index, item in enumerate(schema.outputs)}
    return texts


def _slot(name: str, tooltip: str | None) -> dict:
    return {"name": name, "tooltip": tooltip} if tooltip else {"name": name}


def flat(texts: dict, start: str = "") -> dict[str, str]:
    """The texts by their dotted keys, such as `TemporalUNetLoader.inputs.unet_name.tooltip`."""
    found = {}
    for key, value in texts.items():
        found |= flat(value, f"{start}{key}.") if isinstance(value, dict) else {start + key: value}
    return found


def changes(old: dict, new: dict) -> list[str]:
    """A line for each text that is new, gone or changed."""
    old, new = flat(old), flat(new)
    return ([f"{key}: new: {new[key]}" for key in new if key not in old]
            + [f"{key}: gone" for key in old if key not in new]
            + [f"{key}: was: {old[key]}\n    now: {new[key]}" for key in new if key in old and old[key] != new[key]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is behind")
    args = parser.parse_args()
    pack = host_in_process.boot(os.environ["TEMPORAL_UNET_HOST"])
    texts, pages, old = node_defs(), outdated_help(), read("en", "main")
    main_texts = with_info(old, importlib.import_module(f"{pack}.nodes.bridge.info.lines").TEMPLATES)
    lines = changes(read("en"), texts) + changes(old, main_texts) + [f"{page.parent.name}: help" for page in pages]
    print("\n".join(lines) or "Nothing has changed.")
    if args.check:
        sys.exit(1 if lines else 0)
    write(texts, "nodeDefs")
    write(main_texts, "main")
    for page in pages:
        shutil.copyfile(page, _copy(page))


if __name__ == "__main__":
    main()
