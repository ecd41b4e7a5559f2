"""How many devices does a clip keep at work? The shipped schedule in virtual time, from 1 to 64 devices and over three networks.

    python dev.py bench scale [-- --frames 100 1000 --lanes 4 8 32 --call 1.5 --hand-over "previous step" --json FILE]

The sampler's node runs as in ComfyUI, windows, guidance and steps included; only the network is left out, and in place of
`run_calls` an event queue says when a call would be done: the driver, one thread, sends and takes in one call after the other, the
link to it carries one call's data after the other in each direction, and a device has one call at a time. `--check` compares the
queue with the real `run_calls` on threads and on Ray's actors, whose calls take a fixed time.

*Efficiency* is the devices' work by what they could have done meanwhile; *scheduling* is this machine's CPU time for the schedule
and guidance of a call, measured on the way and not a part of `--driver`.
"""

import argparse
import heapq
import json
import os
import random
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.families import write_unet
from support.host_in_process import boot, node
from support.small import ONE_LEVEL

NETWORKS = {"one machine": None, "100 GbE": 100, "10 GbE": 10, "1 GbE": 1}  # Gbit/s
USABLE = 0.94  # of it, in frames of 1500 bytes over TCP
STEPS, LENGTH, OVERLAP = 25, 25, 6  # as SVD-XT is used
SIZE = 2  # of the latent that is really computed


@dataclass(frozen=True)
class Clip:
    frames: int
    takes: int = 1

    def __str__(self) -> str:
        return f"{self.frames} frames" + (f", {self.takes} takes" if self.takes > 1 else "")


@dataclass
class Farm:
    """Devices and what lies between them and the driver; all times in seconds, each call's varied by `spread`.

    call: of the network for one branch of a window. driver: of the driver's thread for one call. sent, returned: on the link.
    """

    lanes: int
    call: float
    driver: float = 0.0
    sent: float = 0.0
    returned: float = 0.0
    spread: float = 0.05
    elapsed: float = field(default=0.0, init=False)
    worked: float = field(default=0.0, init=False)  # of all devices
    calls: int = field(default=0, init=False)

    def run_calls(self, lanes, work, report=None):
        """In place of the pack's own: runs the calls of `work` in virtual time, on this farm's devices."""
        vary = random.Random(0)
        driver = out = back = now = self.elapsed  # until when each is taken
        idle, events = self.lanes, []
        while True:
            while idle and (call := work.next_call()) is not None:
                driver = max(now, driver) + self.driver / 2
                out = max(driver, out) + self.sent
                took = self.call * vary.uniform(1 - self.spread, 1 + self.spread)
                idle, self.calls, self.worked = idle - 1, self.calls + 1, self.worked + took
                heapq.heappush(events, (out + took, self.calls, "made", call))
            if not events:
                break
            now, order, what, call = heapq.heappop(events)
            if what == "made":
                back = max(now, back) + self.returned
                heapq.heappush(events, (back, order, "here", call))
                continue
            now = driver = max(now, driver) + self.driver / 2
            call.done(call.run(lanes[0]))
            idle += 1
        self.elapsed = now

    @property
    def speed_up(self) -> float:
        return self.worked / self.elapsed

    @property
    def efficiency(self) -> float:
        return self.speed_up / self.lanes


class Studio:
    """The sampler's node on a small network that is never called."""

    def __init__(self):
        import comfy.utils
        import folder_paths

        from support.devices import clone_of, with_clones

        comfy.utils.PROGRESS_BAR_ENABLED = False
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "small.safetensors"
        write_unet(path, ONE_LEVEL, metadata={"temporal_unet.head_channels": str(ONE_LEVEL.head_channels)})
        folder_paths.add_model_folder_path("diffusion_models", folder.name)
        model = node("TemporalUNetLoader").execute(unet_name=path.name).result[0]
        self.plain, self.model, self.folder = model, with_clones(model, [clone_of(model)]), folder
        self.bridge = type(model.model.diffusion_model).__module__.removesuffix(".model.host_unet")
        modules = [module for name, module in sys.modules.items() if name.startswith(f"{self.bridge}.sampling.")]
        self.runners = [module for module in modules if hasattr(module, "run_calls")]

    def sample(self, run_calls, clip: Clip, lanes: int, hand_over: str = "this step", call: float = 0.0) -> None:
        """A clip through the sampler's node on so many lanes; its calls, which take `call` seconds, run by `run_calls`."""
        import comfy.samplers
        import torch

        def network(model, conds, x, *_):
            if call:
                time.sleep(call)
            return [torch.zeros_like(x) for _ in conds]

        hosts = comfy.samplers._calc_cond_batch_outer
        try:
            comfy.samplers._calc_cond_batch_outer = network
            with self.replaced(run_calls, lambda lanes_of: lambda *args: lanes_of(*args)[:1] * lanes):
                self.run(self.model, clip, hand_over)
        finally:
            comfy.samplers._calc_cond_batch_outer = hosts

    @contextmanager
    def replaced(self, run_calls, change=lambda lanes_of: lanes_of):
        """Inside, the pack runs calls by `run_calls`, on the lanes that `change` makes of its own `lanes_of`."""
        kept = {module: (module.run_calls, module.lanes_of) for module in self.runners}
        try:
            for module, (_, lanes_of) in kept.items():
                module.run_calls, module.lanes_of = run_calls, change(lanes_of)
            yield
        finally:
            for module, own in kept.items():
                module.run_calls, module.lanes_of = own

    def run(self, model, clip: Clip, hand_over: str = "this step") -> None:
        """The sampler's node."""
        import torch

        about = {"motion_bucket_id": 127, "fps": 6, "augmentation_level": 0.0}
        conds = [
            [[torch.ones(1, 1, ONE_LEVEL.context_dim), {**about, "concat_latent_image": torch.full((1, 4, SIZE, SIZE), image)}]]
            for image in (1.0, 0.0)  # the negative has no image, as SVD Image to Video makes it
        ]
        options = node("TemporalUNetVideoOptions").execute(window_frames=LENGTH, window_overlap=OVERLAP, hand_over=hand_over)
        node("TemporalUNetSVDSampler").execute(
            model, *conds, {"samples": torch.zeros(clip.frames, 4, SIZE, SIZE)}, 0, STEPS, 1.0, 2.5, "linear", "euler", "karras",
            options=options.result[0], takes=clip.takes,
        )


def farm(lanes: int, network: float | None, args: argparse.Namespace) -> Farm:
    """Devices on this machine, or behind a link of so many Gbit/s."""
    if network is None:
        return Farm(lanes, args.call)
    rate = network * USABLE * 125e6  # bytes a second
    return Farm(lanes, args.call, args.driver / 1000, args.sent * 1e6 / rate, args.returned * 1e6 / rate)


def tabulate(studio: Studio, clips: list[Clip], args: argparse.Namespace) -> list[dict]:
    """A row for each clip and network, printed as it comes: speed-up and efficiency by the count of devices."""
    rows = []
    print(f"| clip | network | {' | '.join(map(str, args.lanes))} |\n|---|---|{'---|' * len(args.lanes)}", flush=True)
    for clip in clips:
        for network in args.networks:
            began, cells, calls = time.process_time(), {}, 0
            for lanes in args.lanes:
                here = farm(lanes, NETWORKS[network], args)
                studio.sample(here.run_calls, clip, lanes, args.hand_over)
                cells[lanes], calls = here.speed_up, calls + here.calls
            scheduling = 1000 * (time.process_time() - began) / calls
            rows.append({"clip": str(clip), "network": network, "speed_up": cells, "scheduling_ms_a_call": round(scheduling, 2)})
            shown = " | ".join(f"{speed_up:.1f} ({speed_up / lanes:.2f})" for lanes, speed_up in cells.items())
            print(f"| {clip} | {network} | {shown} |", flush=True)
    print(f"\nscheduling: {max(row['scheduling_ms_a_call'] for row in rows):.1f} ms of CPU a call at most", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("TEMPORAL_UNET_HOST"), help="a ComfyUI checkout")
    parser.add_argument("--frames", type=int, nargs="*", default=[100, 250, 1000], help="of one clip (default: %(default)s)")
    parser.add_argument("--takes", type=int, nargs="*", default=[16], help="of a clip of 100 frames (default: %(default)s)")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="counts of devices")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--hand-over", default="this step", help="as in Video Options (default: %(default)s)")
    parser.add_argument("--call", type=float, default=1.5, help="seconds of a call on a device (default: %(default)s)")
    parser.add_argument("--driver", type=float, default=8.0, help="ms of the driver's thread for a call (default: %(default)s)")
    parser.add_argument("--sent", type=float, default=3.7, help="MB sent for a call; 25 frames of 576x1024 (default: %(default)s)")
    parser.add_argument("--returned", type=float, default=1.8, help="MB that come back (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare the queue with real threads and actors instead")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if not args.host:
        sys.exit("scale.py: name a ComfyUI checkout with --host or in TEMPORAL_UNET_HOST.")
    boot(args.host)
    import torch

    from tools.bench.scale_check import check

    clips = [*(Clip(frames) for frames in args.frames), *(Clip(100, takes) for takes in args.takes)]
    with torch.inference_mode():
        studio = Studio()
        report = check(studio) if args.check else tabulate(studio, clips, args)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
