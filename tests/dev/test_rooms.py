"""How dev.py runs the tests of a folder and counts them."""
import sys
from pathlib import Path

import pytest

from tools.environments import Host
from tools.rooms import Room

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
