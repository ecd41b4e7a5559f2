"""Questions about files whose disk does not answer: few threads, other files are answered, a message instead of an endless wait."""

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from support.children import run_python

ROOM = Path(__file__).resolve().parents[2] / "nodes" / "bridge" / "info"
PROGRAM = """
import asyncio, time
from file_questions import FileQuestions, NoAnswer

async def main():
    try:
        await FileQuestions(4, 0.1).ask("a", lambda: time.sleep(30))
    except NoAnswer:
        print("said")

asyncio.run(main())
"""


class Disk:
    """It answers a question only once it is back; `asked`: how many wait for it or have been answered."""

    def __init__(self):
        self.back, self.asked = threading.Event(), 0

    def read(self):
        self.asked += 1
        assert self.back.wait(30)
        return "read"


@pytest.fixture
def disk():
    disk = Disk()
    yield disk
    disk.back.set()


@pytest.fixture
def questions(pack):
    """`questions(patience)` in 4 threads, made where they are asked."""
    return lambda patience: pack("nodes.bridge.info.file_questions").FileQuestions(4, patience)


@pytest.fixture
def no_answer(pack):
    return pack("nodes.bridge.info.file_questions").NoAnswer


def test_many_questions_about_one_stuck_file_take_one_thread(questions, disk):
    async def ask():
        asked = questions(20)
        stuck = [asyncio.ensure_future(asked.ask("stuck", disk.read)) for _ in range(40)]
        other = await asyncio.wait_for(asyncio.gather(*(asked.ask(f"{i}", lambda i=i: i) for i in range(40))), 5)
        assert other == list(range(40)) and disk.asked == 1
        disk.back.set()
        assert await asyncio.gather(*stuck) == ["read"] * 40

    asyncio.run(ask())


def test_a_file_is_asked_one_question_at_a_time_and_no_more_than_four_files(questions):
    running, most = [], []

    def question(file):
        running.append(file)
        most.append(list(running))
        time.sleep(0.01)
        running.remove(file)

    async def ask():
        asked = questions(20)
        await asyncio.gather(*(asked.ask(file, lambda file=file: question(file)) for file in "abcdefgh" for _ in range(3)))
        assert not asked.asking and not asked.turns

    asyncio.run(ask())
    assert len(most) == 24 and all(len(set(files)) == len(files) <= 4 for files in most)


def test_what_takes_too_long_is_reported_and_later_questions_need_not_wait(questions, no_answer, disk):
    async def refused(asked, file):
        begun = time.monotonic()
        with pytest.raises(no_answer):
            await asked.ask(file, disk.read)
        return time.monotonic() - begun

    async def ask():
        asked = questions(0.6)
        assert await refused(asked, "a") >= 0.6
        assert await refused(asked, "a") < 0.5 and disk.asked == 1
        assert await asked.ask("fine", lambda: 1) == 1
        await asyncio.gather(*(refused(asked, file) for file in "bcdefg"))  # more than there are threads
        assert disk.asked == 4
        assert await refused(asked, "fine") < 0.5  # no thread is left
        disk.back.set()
        await asyncio.sleep(0.2)
        assert await asked.ask("a", disk.read) == "read" and disk.asked == 5  # what was given up is not asked later

    asyncio.run(ask())


def test_an_error_is_raised_where_it_was_asked(questions):
    async def ask():
        asked = questions(20)
        for _ in range(9):
            with pytest.raises(KeyError):
                await asked.ask("a", lambda: {}["no"])
        assert await asked.ask("a", lambda: 1) == 1

    asyncio.run(ask())


def test_a_process_ends_while_a_disk_does_not_answer():
    done = run_python("-c", PROGRAM, paths=[ROOM], timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "said\n", "")


@pytest.mark.parametrize("route", ["unet_info", "controlnet_info"])
def test_it_is_reported_to_the_browser_that_the_disk_does_not_answer(pack, questions, disk, monkeypatch, route):
    routes = pack("nodes.bridge.info.routes")
    monkeypatch.setattr(routes, "QUESTIONS", questions(0.1))
    monkeypatch.setattr(routes, "_look", lambda *_: disk.read())
    answer = asyncio.run(getattr(routes, route)(make_mocked_request("GET", f"/{route}?name=far.safetensors")))
    assert answer.status == 503
    assert json.loads(answer.body) == {
        "error": "'far.safetensors': the disk has not answered for 0.1 s. Check it, or the network that it is on, and press R to "
        "ask again.",
    }


def test_a_prompt_is_not_refused_because_the_disk_does_not_answer(pack, questions, disk, monkeypatch):
    """The run waits for it."""
    checks = pack("nodes.bridge.info.file_checks")
    monkeypatch.setattr(checks, "QUESTIONS", questions(0.1))
    monkeypatch.setattr(checks, "_answer", lambda *_: disk.read())
    assert asyncio.run(checks.check_unet("far.safetensors")) is True
