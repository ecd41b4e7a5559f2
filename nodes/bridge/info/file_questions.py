"""Questions about files, answered in a few threads of our own: a disk that does not answer stops nothing else."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar
from weakref import WeakValueDictionary

Answer = TypeVar("Answer")


class NoAnswer(Exception):
    """The disk has not answered in time."""


class FileQuestions:
    """Answers one question a file at a time, in at most `threads` threads, each within `patience` seconds.

    The threads are not those of `asyncio.to_thread`: the host serves the page's own files with these, and Python waits for
    them when it ends.
    """

    def __init__(self, threads: int = 4, patience: float = 10.0):
        self.threads, self.patience = threads, patience
        self.free = asyncio.Semaphore(threads)
        self.turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # file -> held while a thread asks about it
        self.asking: set[str] = set()  # files that a thread asks about
        self.late: set[str] = set()  # those of them that somebody has given up waiting for

    async def ask(self, file: str, question: Callable[[], Answer]) -> Answer:
        """What `question()` returns or raises; NoAnswer after `patience` seconds.

        NoAnswer at once where somebody has given up waiting for this file, or for one in every thread, and the disk has not
        answered since: a browser has few connections to a server, and the page needs them.
        """
        if file in self.late or len(self.late) == self.threads:
            raise NoAnswer
        try:
            return await asyncio.wait_for(self._in_turn(file, question), self.patience)
        except asyncio.TimeoutError:
            self.late |= self.asking & {file}
            raise NoAnswer from None

    async def _in_turn(self, file, question):
        """The answer; a question whose asker has given up is dropped, or keeps its thread until the disk answers."""
        turn = self.turns.setdefault(file, asyncio.Lock())
        await turn.acquire()
        try:
            await self.free.acquire()
        except asyncio.CancelledError:
            turn.release()
            raise
        self.asking.add(file)

        def end(_):
            self.asking.remove(file)
            self.late.discard(file)
            self.free.release()
            turn.release()

        answer = asyncio.wrap_future(_in_thread(question))
        answer.add_done_callback(end)
        return await asyncio.shield(answer)


def _in_thread(question) -> Future:
    """The answer to come from a daemon thread, which a process that ends does not wait for."""
    answer: Future = Future()

    def run():
        try:
            answer.set_result(question())
        except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
            answer.set_exception(error)

    threading.Thread(target=run, name="temporal_unet file question", daemon=True).start()
    return answer


QUESTIONS = FileQuestions()  # all that are asked of this server
