"""Runs the fuzzer: damages inputs, reads each in a guarded process, counts how they ended, keeps those that failed.

Each input follows from the kind, `--seed` and its index alone, so that `--kind K --seed S --index I` makes it again.
"""
from __future__ import annotations

import argparse
import collections
import hashlib
import importlib
import itertools
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from random import Random

import torch

from support.host_in_process import boot
from tools.environments import cache
from tools.fuzz import guarded
from tools.fuzz.mutations import mutated
from tools.fuzz.readers import OPTIONS, RIGHT, Readers
from tools.fuzz.seeds import WRITERS, Seed, make_seeds

MOST_MEMORY = 4 * 2**30  # bytes of this process
MOST_KEPT = 5  # inputs of one fault


class Fuzzer:
    """Seeds, and the pack in a ComfyUI in this process, which reads what is made of them."""

    def __init__(self, host: str):
        name = boot(host, extra_nodes=False)
        logging.disable(logging.ERROR)
        self.readers = Readers(lambda module: importlib.import_module(f"{name}.{module}"))
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            self.seeds = make_seeds(Path(scratch))
            first = Path(scratch) / "safetensors-0" / "a.safetensors"
            self.readers.model = self.readers.loader.load_checkpoint(self.readers.unet.open_checkpoint(first), OPTIONS)
        self.pool = [data for seed in self.seeds for data in seed.files.values()]

    def make(self, kind: str, seed: int, index: int) -> Seed:
        """The input of this index: a seed of the kind with its files damaged."""
        random = Random(f"{kind} {seed} {index}")
        chosen = random.choice([each for each in self.seeds if each.kind == kind])
        return Seed(kind, mutated(chosen.files, random, self.pool), chosen.entry)

    def read(self, made: Seed) -> guarded.Outcome:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            write(made.files, Path(scratch))
            return guarded.call(lambda: self.readers.read(made.kind, Path(made.entry)), Path(scratch))


def write(files: dict[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def keep(made: Seed, outcome: guarded.Outcome, name: str, corpus: Path) -> Path:
    """Puts the input into a folder of its own, with how it ended."""
    folder = corpus / name
    shutil.rmtree(folder, ignore_errors=True)
    write(made.files, folder)
    (folder / "outcome.json").write_text(json.dumps({"kind": made.kind, "entry": made.entry, **vars(outcome)}, indent=1))
    return folder


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="how long (default: %(default)s)")
    parser.add_argument("--inputs", type=int, help="how many of each kind, where the time is enough for them")
    parser.add_argument("--kind", action="append", choices=WRITERS, help="this kind alone; several times for several")
    parser.add_argument("--seed", type=int, default=0, help="other inputs (default: %(default)s)")
    parser.add_argument("--index", type=int, help="the input of this index alone")
    parser.add_argument("--corpus", type=Path, default=cache() / "fuzz", help="where what failed is kept (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # a process that forks may have no others
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, resource.RLIM_INFINITY))  # an edit that makes too much ends here
    warnings.simplefilter("ignore")
    fuzzer, kinds = Fuzzer(os.environ["TEMPORAL_UNET_HOST"]), args.kind or list(WRITERS)
    for seed in fuzzer.seeds:
        outcome = fuzzer.read(seed)
        if outcome.text != RIGHT:
            sys.exit(f"A seed of {seed.kind} is not read: {outcome}")
    counts, faults = collections.Counter(), collections.Counter()
    end = time.monotonic() + 60 * args.minutes
    indices = itertools.islice(itertools.count(), args.inputs) if args.index is None else [args.index]
    for index, kind in ((index, kind) for index in indices for kind in kinds):
        if time.monotonic() > end:
            break
        made = fuzzer.make(kind, args.seed, index)
        outcome = fuzzer.read(made)
        counts[kind, outcome.fault or outcome.text] += 1
        if outcome.fault is not None:
            fault = outcome.fault, outcome.text.partition(":")[0], outcome.place
            faults[fault] += 1
            if faults[fault] <= MOST_KEPT:
                name = f"{kind}-{args.seed}-{index}-{hashlib.sha256(repr(fault).encode()).hexdigest()[:6]}"
                folder = keep(made, outcome, name, args.corpus)
                print(f"{outcome.fault} by {folder}: {outcome.text[:300]} [{outcome.place}]", flush=True)
    for kind in kinds:
        ends = {found: count for (of, found), count in sorted(counts.items()) if of == kind}
        print(f"{kind}: {sum(ends.values()):,} inputs: {', '.join(f'{count:,} {found}' for found, count in ends.items())}")
    print(f"{sum(counts.values()):,} inputs, {sum(faults.values()):,} failed in {len(faults)} ways")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
