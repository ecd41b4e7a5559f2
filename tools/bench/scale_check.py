"""The simulated schedule next to real ones: threads that sleep, and Ray's actors of UNet on Several Machines."""

import importlib
import time

from support.host_in_process import node
from tools.bench.scale import Clip, Farm, Studio

CLIP, FIRST = Clip(100), Clip(25)  # FIRST starts the actors and gives them the network
CALL = 0.06  # seconds
ACTORS = 2


def check(studio: Studio) -> list[dict]:
    """Seconds of the event queue and of the real thing, a row for each count of lanes; printed as they come."""
    rows = []
    for lanes in (1, 2, 4, 8):
        rows.append(_row(f"{lanes} threads", _simulated(studio, lanes, 0.0), _on_threads(studio, lanes)))
    real, driver = _on_actors(studio)
    rows.append(_row(f"{ACTORS} actors, {1000 * driver:.1f} ms of the driver a call", _simulated(studio, ACTORS, driver), real))
    return rows


def _row(lanes, simulated, real):
    print(f"{CLIP}, {lanes}: {simulated:.2f} s simulated, {real:.2f} s real", flush=True)
    return {"lanes": lanes, "simulated": round(simulated, 2), "real": round(real, 2)}


def _simulated(studio, lanes, driver):
    farm = Farm(lanes, CALL, driver, spread=0.0)
    studio.sample(farm.run_calls, CLIP, lanes)
    return farm.elapsed


class Watch:
    """In place of `run_calls`, which it runs: the seconds that this took, those of this process's CPU, and the calls of `work`."""

    def __init__(self, studio: Studio):
        self.real = studio.runners[0].run_calls
        self.seconds = self.cpu = 0.0
        self.calls = 0

    def run_calls(self, lanes, work, report=None):
        self.work = work
        began, cpu = time.perf_counter(), time.process_time()
        self.real(lanes, self)
        self.seconds += time.perf_counter() - began
        self.cpu += time.process_time() - cpu

    def next_call(self):
        call = self.work.next_call()
        self.calls += call is not None
        return call


def _on_threads(studio, lanes):
    watch = Watch(studio)
    studio.sample(watch.run_calls, CLIP, lanes, call=CALL)
    return watch.seconds


def _on_actors(studio):
    """(seconds, seconds of this process's CPU for each call)."""
    worker = importlib.import_module(f"{studio.bridge}.pool.worker")
    worker.Worker = _of_fixed_time(worker.Worker)
    model = node("TemporalUNetRayPool").execute(studio.plain, "", ACTORS, False).result[0]
    studio.run(model, FIRST)
    watch = Watch(studio)
    with studio.replaced(watch.run_calls):
        studio.run(model, CLIP)
    return watch.seconds, watch.cpu / watch.calls


def _of_fixed_time(kind):
    """A worker whose calls take CALL seconds, as many devices as this machine may have."""
    seconds = CALL

    class Sleeping(kind):
        def call(self, *args):
            began = time.perf_counter()
            made = super().call(*args)
            time.sleep(max(0.0, began + seconds - time.perf_counter()))
            return made

    return Sleeping
