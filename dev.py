#!/usr/bin/env python3
"""Set up, run, test and try the pack with a real ComfyUI: `python dev.py run`, `python dev.py test`, `python dev.py --help`.

This file holds the commands. In `tools/`, environments.py makes environments and hosts, server.py runs a host, animate.py and
progress.py make a video on it, convert.py converts models, rooms.py runs tests, processes.py whatever else, and renew_locks.py
renews the lock files that environments are made from. Only the standard library is used.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tools import animate
from tools.environments import (
    ARCHIVES,
    LOCKS,
    NEWEST,
    PACK,
    DevError,
    Host,
    built,
    cache,
    key,
    layered_env,
    locked,
    pinned_host,
    registry_env,
    say,
    test_environment,
    users_host,
)
from tools.processes import run_tool
from tools.renew_locks import renew
from tools.rooms import NodeRoom, Room, side_by_side
from tools.server import Server, ServerError, link_file

ROOT = Path(__file__).resolve().parent
TOOLS = ROOT / "tools"
BENCHES = {  # name -> module of tools/
    "quality": "bench.quality", "steps": "bench.fewer_steps", "long": "bench.long_clips", "chunks": "bench.chunk_costs",
    "control": "bench.control_time", "speed": "bench.speed", "files": "bench.file_kinds",
    "packed": "bench.packed_step", "types": "bench.number_formats", "soak": "bench.soak", "scale": "bench.scale",
}
MAKERS = {
    "locales": "assets.make_locales", "templates": "assets.make_templates", "blueprint": "assets.make_blueprint",
    "node-pictures": "assets.photograph_nodes", "help-pictures": "assets.help_pictures",
    "icon": "assets.make_icon", "cards": "assets.cards", "examples": "assets.make_examples",
}
MADE_IN_CACHE = ("envs", "hosts", "untrained", "demo", "serve", "fuzz")


def host_for(args: argparse.Namespace) -> Host:
    return users_host(args) or pinned_host(NEWEST)


def hosts_for_tests(args: argparse.Namespace) -> list[Host]:
    """The user's host, or the pinned ones that --host names, the newest first; with --quick the newest of them."""
    host = users_host(args)
    if host:
        return [test_environment(host)]
    versions = [version for version in ARCHIVES if args.host in (None, "all", version)]
    return [pinned_host(version) for version in (versions[:1] if args.quick else versions)]


def made_models(host: Host, name: str, module: str, *sources: Path, options: tuple[str, ...] = ()) -> Path:
    """A models folder that `module --out FOLDER` of tools/ fills; made again when its options or `sources` change."""
    def build(folder: Path) -> None:
        say(f"Making {name} models in {folder}")
        if run_tool(host, module, "--out", folder, *options):
            raise DevError(f"tools.{module} failed: see its message above.")
    texts = [path.read_text(encoding="utf-8") for path in sources]
    return built(cache() / name / key(*texts, *options), build)


def untrained_models(host: Host, *options: str) -> Path:
    """Small files of random weights in every layout, for the tests and for trying; `options` as in tools/untrained.py."""
    sources = TOOLS / "untrained.py", ROOT / "tests" / "support" / "families.py"
    return made_models(host, "untrained", "untrained", *sources, options=options)


def demo_models(host: Host) -> Path:
    """The trained miniature, and an image of its world with its true continuation."""
    sources = [TOOLS / "miniature" / name for name in ("lay_out.py", "world.py", "weights/SHA256SUMS")]
    return made_models(host, "demo", "miniature.lay_out", *sources)


def link_models(models: Path, base: Path) -> None:
    for file in models.rglob("*.safetensors"):
        link_file(file, base / "models" / file.relative_to(models))


def command_run(args: argparse.Namespace) -> None:
    animate.make_folder(args.out)
    host = host_for(args)
    image = args.image or (host.folder / "input" / "example.png" if args.svd else demo_models(host) / "first_frame.png")
    if not args.svd:
        say("Without --svd the miniature makes the video: a small model that comes with this pack, to see that all works.")
    if args.image and not args.svd:
        say(f"Warning: it knows nothing but its own small world of drawn shapes, so {args.image} will not come to life. For photos "
            "name a real svd.safetensors with --svd.")
    with tempfile.TemporaryDirectory(prefix=f"{PACK}-") as scratch:
        base = Path(scratch)
        animate.lay_out(host, base, image, args.svd)
        prompt = animate.prepared_prompt(bool(args.svd), {name: getattr(args, name) for name in animate.OPTIONS})
        say(f"The video starts from {image}")
        say(f"Starting ComfyUI; its log: {base / 'server.log'}")
        with Server(host.folder, host.python, base) as server:
            made = animate.run_prompt(server, prompt)
        video = animate.copy_under_a_free_name(made, args.out)
    say(str(video))


def command_test(args: argparse.Namespace) -> None:
    newest, *others = hosts_for_tests(args)
    registry_env()  # here, so that no test waits for a download
    chosen = [*(["-m", "not slow"] if args.quick else []), *args.pytest_args]
    with tempfile.TemporaryDirectory() as folder:
        def room(name, host, kind=Room, **options):
            marks = ["-m", "not one_host"] if host is not newest else []  # before those that the user chose, which replace it
            return kind(name, host, [*marks, *chosen], Path(folder), chosen=bool(args.pytest_args), **options)

        def halves(name, host):
            return [room(name, host, half=half) for half in range(2)]

        # Three at a time on two cores, since servers and pages also wait. Servers one after the other: the memory of two at once,
        # with full-size models, is more than some machines have. Those of the rest that take longest come first.
        lanes = [[room("server", host) for host in (newest, *others)], [], []]
        rest = halves("host", newest)
        units = [room("unet", newest)] if args.quick else halves("unet", newest)  # each process begins with seconds of imports
        if newest.name != "0.16.3":
            rest.append(room("browser", newest))
        rest += [half for host in others for half in halves("host", host)]
        rest += [*units, room("dev", newest), room("web", newest, NodeRoom)]
        total = side_by_side(lanes, rest, threads=max(1, (os.cpu_count() or 2) // 2))
    say(f"\n{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    sys.exit(1 if total["failed"] or not total["passed"] else 0)


def command_serve(args: argparse.Namespace) -> None:
    host = host_for(args)
    base = cache() / "serve"
    demo = demo_models(host)
    for models in (untrained_models(host), demo):
        link_models(models, base)
    (base / "input").mkdir(parents=True, exist_ok=True)
    for photo in (demo / "first_frame.png", host.folder / "input" / "example.png"):
        shutil.copy(photo, base / "input")
    with Server(host.folder, host.python, base, port=args.port) as server:
        say(f"{server.url}  (models and outputs: {base}; Ctrl-C ends it)")
        server.process.wait()
        raise ServerError(f"ComfyUI ended by itself; the end of its log:\n{server.log(40)}")


def command_setup(args: argparse.Namespace) -> None:
    for host in hosts_for_tests(args):
        say(f"ComfyUI {host.name}: {host.folder}\n  its Python: {host.python}")
    say(f"comfy-cli: {registry_env()}")


def command_lint(args: argparse.Namespace) -> None:
    """ruff and mypy, in an environment that sees the newest ComfyUI's packages, whose types mypy reads."""
    host = users_host(args) or pinned_host(NEWEST)
    sys.exit(run_tool(Host(host.name, host.folder, layered_env("lint", host.python, LOCKS / "lint.txt")), "lint"))


def command_lock(args: argparse.Namespace) -> None:
    renew(args.pytest_args)


def command_tool(args: argparse.Namespace) -> None:
    """Measures, or makes a file of the repository again; see the scripts for what and how."""
    host = users_host(args)
    host = test_environment(host) if host else pinned_host(NEWEST)
    sys.exit(run_tool(host, args.tools[args.what], *args.pytest_args))


def command_convert(args: argparse.Namespace) -> None:
    sys.exit(run_tool(host_for(args), "convert", args.source, args.target, args.type, args.dialect))


def command_fuzz(args: argparse.Namespace) -> None:
    """Damaged inputs of every kind that the pack reads: see tools/fuzz."""
    host = users_host(args)
    host = test_environment(host) if host else pinned_host(NEWEST)
    kinds = [text for kind in args.kind for text in ("--kind", kind)]
    sys.exit(run_tool(host, "fuzz.run", "--minutes", args.minutes, *kinds, *args.pytest_args))


def command_clean(args: argparse.Namespace) -> None:
    with locked():
        for name in MADE_IN_CACHE:
            shutil.rmtree(cache() / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # what others put there stays
        (cache() / "lock").unlink()
        cache().rmdir()
    say(f"Removed what dev.py had made in {cache()}")


def absolute(text: str) -> Path:
    """A path of the command line that holds in other working folders, too."""
    return Path(text).absolute()


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description="Set up, run, test and try Temporal UNet with a real ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(function=function, pytest_args=arguments[split + 1:], quick=False)
        if name not in ("lock", "clean"):
            added.add_argument("--comfyui", type=Path, metavar="PATH",
                               help="use this ComfyUI and its Python; nothing is downloaded for it")
            added.add_argument("--python", type=Path, metavar="PATH", help="the Python of that ComfyUI, where it is not found")
        if name in ("setup", "test"):
            added.add_argument("--host", choices=[*ARCHIVES, "all"], help="the ComfyUI version to fetch and use (default: all)")
        return added

    command("setup", command_setup, "Make the environments and hosts, nothing else.")
    run = command("run", command_run, "Animate a photo, headless; the last line names the video.")
    run.add_argument("--image", type=animate.existing_file, metavar="PATH",
                     help="the photo (default: ComfyUI's example image, or without --svd a drawing of the miniature's world)")
    run.add_argument("--svd", type=animate.existing_file, metavar="PATH",
                     help="svd.safetensors or svd_xt.safetensors, the full checkpoint (default: the miniature, a small model that "
                     "comes with the pack and knows nothing but its own world)")
    run.add_argument("--out", type=animate.folder, metavar="DIR", default=Path("output"),
                     help="where the video goes (default: ./output)")
    for name, option in animate.OPTIONS.items():
        run.add_argument(f"--{name.replace('_', '-')}", type=option.parse, metavar="N", help=option.help())
    convert = command("convert", command_convert, "Write the UNet of a model file as another file: of another type, or as GGUF.")
    convert.add_argument("source", type=absolute, metavar="IN",
                         help="any file that Load UNet reads: safetensors, .ckpt and the like, GGUF, an index of shards, or a "
                         "folder of diffusers' layout; of a full checkpoint the UNet alone is converted, no VAE and text encoder")
    convert.add_argument("target", type=absolute, metavar="OUT",
                         help="the file to write, ending in .safetensors or .gguf; nothing is overwritten")
    convert.add_argument("--type", required=True, metavar="TYPE",
                         help="fp32, fp16, bf16; for safetensors also fp8; for GGUF also Q8_0, Q5_1, Q5_0, Q4_1, Q4_0")
    convert.add_argument("--dialect", choices=("comfy", "sdcpp"), default="comfy",
                         help="of GGUF: comfy (the default) quantizes convolutions too, for Load UNet and ComfyUI-GGUF; sdcpp "
                         "leaves them in fp16, for stable-diffusion.cpp")
    test = command("test", command_test, "Run all tests; arguments after -- go to pytest.")
    test.add_argument("--quick", action="store_true", help="the newest ComfyUI alone, without the tests marked slow")
    serve = command("serve", command_serve, "Start the editor with the pack installed.")
    serve.add_argument("--port", type=int, default=8188)
    for name, tools, text, what in (
        ("bench", BENCHES, "Measure",
         "videos of the miniature against the truth; long videos: joints, loops, chains, memory; time in chunks; time of a "
         "controlled step; a call of the network next to ComfyUI's: time, memory, the machine's peak; kinds of files; a step with "
         "GGUF weights; what GGUF's number formats cost a video; a server that runs for long; clips on 1 to 64 simulated devices"),
        ("make", MAKERS, "Make files of the repository again",
         "texts of the nodes; workflows and their images; the subgraph blueprint; images of the nodes; moving images of the help "
         "pages; the registry's icon and banner"),
    ):
        tool = command(name, command_tool, f"{text}; arguments after -- go to the script.")
        tool.set_defaults(tools=tools)
        tool.add_argument("what", choices=tools, help=what)
    fuzz = command("fuzz", command_fuzz,
                   "Read damaged files of every kind and keep what fails; arguments after -- go to the script: --help says which.")
    fuzz.add_argument("--minutes", type=float, default=30, help="how long (default: %(default)s)")
    fuzz.add_argument("--kind", action="append", default=[], help="this kind alone; several times for several")
    command("lint", command_lint, "Check the code with ruff and mypy.")
    command("lock", command_lock,
            "Renew the lock files in tools/locks; arguments after -- go to uv: --upgrade takes newer versions.")
    command("clean", command_clean, "Remove what dev.py made in the cache.")
    return parser.parse_args(arguments[:split])


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `with` blocks stop what they started
    if sys.version_info < (3, 10):  # noqa: UP036 (nothing else tells who has an older one)
        sys.exit(f"dev.py: this is Python {sys.version.split()[0]}; use 3.10 or newer.")
    args = parse_arguments(sys.argv[1:])
    try:
        args.function(args)
    except DevError as error:
        sys.exit(f"dev.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
