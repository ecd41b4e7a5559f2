"""How dev.py runs the tests of a folder and counts them."""
import sys
from collections import Counter
from pathlib import Path

import pytest

from tools.environments import ROOT, Host
from tools.rooms import Room, side_by_side

HOST_FILES = sorted((ROOT / "tests" / "host").glob("test_*.py"))
HERE = Host("/home/somebody/ComfyUI", Path("/home/somebody/ComfyUI"), Path(sys.executable))


def test_a_host_that_is_named_by_its_path_has_its_files_in_the_scratch_folder(tmp_path):
    room = Room("unet", HERE, [], tmp_path)
    assert room.log.parent == room.report.parent == tmp_path
    assert Room("unet", Host("0.30.0", HERE.folder, HERE.python), [], tmp_path).log != room.log


@pytest.mark.parametrize("chosen, failed", [(False, 1), (True, 0)])
def test_a_room_without_a_test_fails_where_nobody_chose_so(tmp_path, chosen, failed):
    """Status 5 of pytest: it found no test. The marks of a quick round are no choice of the user's."""
    room = Room("unet", HERE, ["-m", "not slow"], tmp_path, chosen=chosen)
    assert room.counts(status=5)["failed"] == failed


def test_two_halves_have_every_file_once(tmp_path):
    halves = [Room("host", HERE, [], tmp_path, half=half) for half in range(2)]
    files = [[path for path in half.command() if path in HOST_FILES] for half in halves]
    assert sorted(files[0] + files[1]) == HOST_FILES and abs(len(files[0]) - len(files[1])) <= 1
    assert len({half.log for half in halves}) == len({half.title for half in halves}) == 2


class Passing(Room):
    """One passed test, of which a file is left."""

    def command(self):
        return [sys.executable, "-c", f"open({str(self.log) + '.ran'!r}, 'x')"]  # a second run of it would fail

    def counts(self, status):
        return Counter(passed=status == 0, failed=status != 0)


def test_each_room_runs_once_also_those_that_belong_to_no_lane(tmp_path):
    a, b, c, d = (Passing(name, HERE, [], tmp_path) for name in "abcd")
    assert side_by_side([[a, b], []], [c, d], threads=1) == Counter(passed=4)
    assert all(Path(f"{room.log}.ran").exists() for room in (a, b, c, d))
