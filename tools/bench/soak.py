"""Does a server that runs for long stay right and stay small? Prompts of random settings with cancels, faults and two clients.

    python dev.py bench soak [-- --prompts 300 --seed 0 --pool --json FILE]

A real ComfyUI runs the pack on its miniature and an untrained image model (64x64 pixels, up to three steps). Each prompt's settings
follow from the seed. In between: prompts that are cancelled, prompts with a fault, which must end in one error that names the node
or the file, `/free`, and two clients at once, each of which must get its own previews and no others. Five prompts run again at the
middle and the end, one of them after each cancel, fault and `/free`, and random ones now and then: to the same bits. What the
server holds is measured after `/free` every so many prompts. `--pool` has all networks called on two workers of Ray, of which the
memory is measured, too. Prints tables; ends with status 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tools.bench.soak_clients import Clients
from tools.bench.soak_faults import any_fault
from tools.bench.soak_prompts import RESIDUALS, any_prompt, image, lay_out_base, long_run, pooled, preparing, video
from tools.bench.soak_runs import Runs
from tools.environments import Host
from tools.server import Server

MEASURED = 10  # prompts from one measure to the next
WARM = 10  # prompts until all is loaded once: what is held then is what growth is counted from
WARM_POOL = 40  # with workers, each of which must have met each kind of model
ROOM = {  # growth that is no fault
    "anonymous": 60e6, "tensors": 1e6, "threads": 4, "files": 8, "mapped": 0, "parts": 0,
    "actors": 60e6, "ray": 60e6, "store": 60e6,
}
KINDS = {"plain": 10, "again": 3, "two clients": 2, "cancel": 3, "fault": 3, "free": 2}  # weights of what comes next
REFERENCES = [(video, 1), (video, 2), (video, 3), (video, 5), (image, 1)]  # (maker, its seed)


@dataclass
class Report:
    warm: int = WARM
    prompts: int = 0
    counts: Counter = field(default_factory=Counter)
    held: list[dict] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def grown(self) -> list[str]:
        """What the server holds more of at the end than once it was warm; the smallest of the last three measures counts."""
        warm = next((row for row in self.held if row["prompt"] >= self.warm), self.held[-1])
        last = {name: min(row[name] for row in self.held[-3:]) for name in ROOM}
        grown = [name for name, room in ROOM.items() if last[name] - warm[name] > room]
        return [f"{name} grew from {warm[name]:,} to {last[name]:,}" for name in grown]


class Soak:
    """One run against one server; see the module."""

    def __init__(self, server: Server, seed: int, clients: Clients, change: Callable[[dict], dict] | None = None):
        self.rng, self.report, self.clients = Random(seed), Report(WARM if change is None else WARM_POOL), clients
        self.runs = Runs(server, self.report.faults, change or (lambda prompt: prompt))
        self.references = [maker(Random(number)) for maker, number in REFERENCES]
        self.known: list[dict] = []  # random prompts that ran
        self.next_reference = 0

    def run(self, prompts: int) -> Report:
        self._prepare()
        middle, kinds = prompts // 2, iter(KINDS)  # each once, then by their weights
        while self.runs.count < prompts:
            before = self.runs.count
            kind = next(kinds, None) or self.rng.choices(list(KINDS), KINDS.values())[0]
            self.report.counts[kind] += 1
            getattr(self, "_" + kind.replace(" ", "_"))()
            if before < middle <= self.runs.count:
                self._all_references()
            if self.runs.count // MEASURED > before // MEASURED:
                self._measure()
        self._all_references()
        self._measure()
        self.report.prompts = self.runs.count
        self.report.faults += self.clients.faults(self.runs.queued_by) + self.report.grown()
        return self.report

    def _prepare(self) -> None:
        """The files that later prompts read, and the references for the first time."""
        outputs = self.runs.outputs(preparing())
        [saved] = outputs["save residuals"]["residuals"]
        base = self.runs.server.base
        (base / "output" / saved["subfolder"] / saved["filename"]).rename(base / "input" / RESIDUALS)
        self._all_references()

    def _all_references(self) -> None:
        for prompt in self.references:
            self.runs.same(prompt)

    def _reference(self) -> None:
        """After something went wrong, the next prompt is right."""
        self.next_reference = (self.next_reference + 1) % len(self.references)
        self.runs.same(self.references[self.next_reference])

    def _plain(self) -> None:
        self.known.append(any_prompt(self.rng))
        self.runs.same(self.known[-1])

    def _again(self) -> None:
        if self.known:
            self.runs.same(self.rng.choice(self.known))

    def _two_clients(self) -> None:
        """Both queue at once."""
        prompts = [video(self.rng), any_prompt(self.rng)]
        self.runs.same_together(dict(zip(self.clients.names, prompts, strict=True)))
        self.known += prompts

    def _cancel(self) -> None:
        self.runs.cancelled(long_run(self.rng), after=self.rng.uniform(0, 1))
        self._reference()

    def _fault(self) -> None:
        what, prompt, named = any_fault(self.rng)
        self.report.counts[f"fault: {what}"] += 1
        self.runs.refused(what, prompt, named)
        self._reference()

    def _free(self) -> None:
        self.runs.free(self.rng.random() < 0.5)
        self._reference()

    def _measure(self) -> None:
        held = {"prompt": self.runs.count, **self.runs.held()}
        self.report.held.append(held)
        print(*(f"{name} {value:,}" for name, value in held.items()), f"faults {len(self.report.faults)}", sep=", ", flush=True)


def soak(host: Host, untrained: Path, base: Path, prompts: int, seed: int = 0, pool: bool = False) -> Report:
    """Runs the soak in `base`, an empty folder; `untrained`: a models folder of tools/untrained.py. `pool`: see the module."""
    lay_out_base(base, untrained)
    with Server(host.folder, host.python, base, ["--preview-method", "latent2rgb"]) as server, Clients(server.port) as clients:
        report = Soak(server, seed, clients, pooled if pool else None).run(prompts)
    if "Traceback" in (log := server.log()):
        report.counts["tracebacks in the log"] = log.count("Traceback")
    return report


def table(report: Report) -> str:
    """What is held at some prompts, as Markdown."""
    shown = {row["prompt"]: row for row in report.held}
    wanted = [min(shown, key=lambda at, near=near: abs(at - near)) for near in (10, 100, 300)]
    sizes = ["resident", "anonymous", "tensors", *(["actors", "ray", "store"] if report.held[-1]["actors"] else [])]
    columns = "prompt", *sizes, "threads", "open files", "mapped files", "half-written files"
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for at in dict.fromkeys([*wanted, report.held[-1]["prompt"]]):
        row = shown[at]
        shown_sizes = " | ".join(f"{row[name] / 2**20:,.0f} MiB" for name in sizes)
        lines.append(f"| {at} | {shown_sizes} | {row['threads']} | {row['files']} | {row['mapped']} | {row['parts']} |")
    return "\n".join(lines)


def main() -> None:
    import dev  # makes the untrained models, or has them

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", action="store_true", help="call all networks on two workers of Ray")
    parser.add_argument("--json", type=Path, help="write counts, measures and faults here")
    settings = parser.parse_args()
    host = Host("under test", Path(os.environ["TEMPORAL_UNET_HOST"]), Path(sys.executable))
    with tempfile.TemporaryDirectory(prefix="soak-") as base:
        report = soak(host, dev.untrained_models(host), Path(base), settings.prompts, settings.seed, settings.pool)
    print(table(report), *(f"{name}: {count}" for name, count in sorted(report.counts.items())), sep="\n")
    print(f"{report.prompts} prompts, {len(report.faults)} faults", *report.faults, sep="\n")
    if settings.json:
        settings.json.write_text(json.dumps(vars(report), indent=1) + "\n")
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
