"""The fuzzer: what it makes is the same again, it notices every kind of fault, and in a short run it finds none."""

import os
import pickle
import re
import sys
import time
from pathlib import Path
from random import Random

import pytest

from support.children import run_python
from tools.fuzz import guarded
from tools.fuzz.mutations import edits_for, mutated
from tools.fuzz.seeds import make_seeds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


class Canary:
    def __reduce__(self):
        return open, (guarded.MARK, "w")


def forever() -> str:
    while True:
        pass


FAULTS = {  # what a reader does -> how that is called
    "error": lambda: {}["key"], "hang": forever, "memory": lambda: str(len(bytearray(300 * 2**20))), "crash": lambda: os._exit(3),
    "code": lambda: str(pickle.loads(pickle.dumps(Canary()))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_a_reader_is_noticed(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(guarded, "MOST_SECONDS", 1)
    assert guarded.call(FAULTS[fault], tmp_path).fault == fault


def test_what_waits_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded, "MOST_WAITING", 0.2)
    os.mkfifo(tmp_path / "pipe")
    begun = time.monotonic()
    assert guarded.call(lambda: Path("pipe").read_text(), tmp_path).fault == "hang"
    assert time.monotonic() - begun < 30


def test_what_a_reader_gives_is_no_fault(tmp_path):
    (tmp_path / "a").write_text("text")
    assert guarded.call(lambda: Path("a").read_text(), tmp_path).text == "text"


@pytest.mark.slow
@pytest.mark.one_host
def test_an_input_is_the_same_again_and_another_than_its_seed(tmp_path):
    once, again = tmp_path / "once", tmp_path / "again"
    once.mkdir()
    again.mkdir()
    seeds = make_seeds(once)
    assert seeds == make_seeds(again)
    pool = [data for seed in seeds for data in seed.files.values()]
    for seed in seeds:
        made = [mutated(seed.files, Random(index), pool) for index in range(5)]
        assert made == [mutated(seed.files, Random(index), pool) for index in range(5)]
        assert sum(each != seed.files for each in made) >= 3 and len({str(each) for each in made}) > 1
        assert all(len(edits_for(data)) > 1 for data in seed.files.values())


@pytest.mark.slow
@pytest.mark.one_host
def test_damaged_inputs_of_every_kind_are_read_or_refused(tmp_path):
    """A minute of `dev.py fuzz`: every way is gone, whatever the machine; what is counted follows from the seed."""
    run = run_python("-m", "tools.fuzz.run", "--inputs", 12, "--minutes", 3, "--corpus", tmp_path, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    counts = dict(re.findall(r"^(\w+): (\d+) inputs", run.stdout, re.MULTILINE))
    assert len(counts) == 10 and set(counts.values()) == {"12"}
