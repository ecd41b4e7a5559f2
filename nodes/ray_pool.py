"""UNet on Several Machines (Ray): the network of a MODEL is called on workers of a Ray cluster, sampling stays here."""

import logging

from comfy_api.latest import io

from .bridge.node_names import RAY_POOL as NODE
from .bridge.pool.pooled_model import Pool, with_pool
from .bridge.pool.workers import workers_at


class RayPool(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetRayPool",
            display_name=NODE,
            category="Temporal UNet/Model",
            description="Calls the UNet on several GPUs or machines at the same time, by Ray: windows of a long video and both "
            "branches of guidance are shared out. Sampling, previews and cancel stay here.",
            search_aliases=["ray", "cluster", "distributed", "multi gpu", "multigpu", "several gpus", "remote", "farm", "workers"],
            inputs=[
                io.Model.Input("model", tooltip="SVD, Stable Diffusion 1, 2 or XL. LoRAs go along; patches that are code do not."),
                io.String.Input(
                    "address", default="",
                    tooltip="Where Ray runs: host:6379 of the cluster's head, or auto for one that runs on this machine. Empty: it "
                    "is started on this machine alone.",
                ),
                io.Int.Input(
                    "workers", default=0, min=0, max=1024,
                    tooltip="How many workers call the UNet, each on a GPU of its own. 0: one for each GPU of the cluster.",
                ),
                io.Boolean.Input(
                    "use_this_gpu", default=True,
                    tooltip="Whether this machine computes too, next to the workers, and alone where the model has what they do "
                    "not get.",
                ),
                io.Float.Input(
                    "timeout", default=60.0, min=1.0, max=3600.0, step=1.0, advanced=True, optional=True,
                    tooltip="Seconds after which a worker that does not answer counts as lost, and after which a run without any "
                    "worker ends.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for SVD Temporal UNet Sampler, KSampler and others."),
                io.String.Output(display_name="info", tooltip="Which workers there are, as text."),
            ],
        )

    @classmethod
    def execute(
        cls, model, address: str, workers: int, use_this_gpu: bool, timeout: float = 60.0
    ) -> io.NodeOutput:
        pool = workers_at(address.strip())
        pool.set_count(workers)
        pool.wait_for_one(timeout)
        text = "\n".join(pool.lines())
        logging.info("%s: %s", NODE, text.replace("\n", "; "))
        return io.NodeOutput(with_pool(model, Pool(pool, workers, use_this_gpu, timeout)), text)
