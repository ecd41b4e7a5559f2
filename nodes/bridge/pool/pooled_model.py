"""A MODEL whose network is called on the workers, wherever the host calls it: by our sampler in windows, by KSampler and others."""

import logging
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP

from ..control.asked import ASKING
from ..node_names import RAY_POOL as NODE
from ..sampling.lanes import COMPILED, ELSEWHERE, LANE, NetworkCall, lanes_of, run_calls
from .pool_run import PoolRun
from .shared_network import SharedNetwork
from .stays_here import controls_stay_here, refusal, stays_here
from .workers import Workers


@dataclass(frozen=True)
class Pool:
    """The pool of a MODEL: `count` workers, 0 for one on each GPU of the cluster, and whether this machine computes too."""

    workers: Workers
    count: int
    here: bool
    timeout: float  # seconds, as in Workers

    def __deepcopy__(self, memo):
        return self


def with_pool(model, pool: Pool):
    """A clone of the MODEL whose network is called on the pool's workers."""
    model = model.clone()
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _run), (WrappersMP.CALC_COND_BATCH, _branches_apart), (WrappersMP.DIFFUSION_MODEL, _call)
    ):
        model.remove_wrappers_with_key(kind, ELSEWHERE)
        model.add_wrapper_with_key(kind, ELSEWHERE, wrapper)
    model.model_options["transformer_options"][ELSEWHERE] = pool
    return model


def _run(executor, *args, **kwargs):
    """Around a sampling run of the host's guider."""
    guider = executor.class_obj
    options = dict(guider.model_options["transformer_options"])
    pool = options.pop(ELSEWHERE)
    if (kept := stays_here(guider.model_patcher, options, guider.conds.values())) is None:
        patcher = guider.model_patcher
        options = _not_compiled(options)
        controls = controls_stay_here(guider.conds.values())
        options[ELSEWHERE] = PoolRun(pool.workers, SharedNetwork(patcher), pool.here, patcher.model.diffusion_model, controls)
        options[ASKING] = True
        pool.workers.timeout = pool.timeout
        pool.workers.set_count(pool.count)
    elif pool.here:
        logging.warning("%s: this run is computed on this machine alone, since workers do not get %s.", NODE, kept)
    else:
        raise ValueError(refusal(kept))
    guider.model_options = {**guider.model_options, "transformer_options": options}
    return executor(*args, **kwargs)


def _not_compiled(options: dict) -> dict:
    """The transformer_options without what puts a compiled network into the host's BaseModel for the time of a call.

    Of calls that are out at the same time one would take another's for the network that it puts back.
    """
    wrappers = options.get("wrappers", {})
    of_model = dict(wrappers.get(WrappersMP.APPLY_MODEL, {}))
    if not of_model.pop(COMPILED, None):
        return options
    logging.warning("%s: the compiled network is not used in this run, since workers compute without torch.compile.", NODE)
    return {**options, "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: of_model}}


def _branches_apart(executor, model, conds, x, timestep, options):
    """Around the host's evaluation of all branches of guidance: each goes out by itself."""
    present = [branch for branch, cond in enumerate(conds) if cond is not None]
    marks = options["transformer_options"]
    if len(present) < 2 or LANE in marks or not isinstance(marks.get(ELSEWHERE), PoolRun):
        return executor(model, conds, x, timestep, options)
    made = [torch.zeros_like(x) for _ in conds]
    run_calls(lanes_of(options, conds), _Branches(executor, model, conds, x, timestep, present, made))
    return made


class _Branches:
    """The calls of `_branches_apart`, which fill `made`."""

    def __init__(self, executor, model, conds, x, timestep, present, made):
        self.executor, self.args, self.conds = executor, (x, timestep), conds
        self.model, self.waiting, self.made = model, list(present), made

    def next_call(self) -> NetworkCall | None:
        if not self.waiting:
            return None
        branch = self.waiting.pop(0)
        mine = [cond if index == branch else None for index, cond in enumerate(self.conds)]

        def done(made):
            self.made[branch] = made[branch]

        return NetworkCall(lambda options: self.executor(self.model, mine, *self.args, options), done)


def _call(executor, x, timesteps, context, y, control, options, **kwargs):
    """Around a call of the network."""
    run = options.get(ELSEWHERE)
    if not isinstance(run, PoolRun):
        return executor(x, timesteps, context, y, control, options, **kwargs)
    return run.call(executor, x, timesteps, context, y, control, options, **kwargs)
