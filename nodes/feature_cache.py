"""UNet Feature Cache: steps that leave out the inner blocks of the network where these have hardly anything new to compute."""

from comfy_api.latest import io

from .bridge.inputs.ranges import in_order, in_schema, numbers, passes
from .bridge.node_names import FEATURE_CACHE as NODE
from .bridge.sampling.feature_caching import CacheSettings, with_cache


class FeatureCache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetFeatureCache",
            display_name=NODE,
            category="Temporal UNet/Model",
            description="Faster sampling: the inner blocks of the UNet are computed only in steps where enough has changed, and "
            "extrapolated in between. The result changes a little.",
            search_aliases=["deepcache", "deep cache", "easycache", "teacache", "first block cache", "speed up", "svd"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL of this pack's loaders: SVD, Stable Diffusion 1, 2 or XL."),
                io.Float.Input(
                    "threshold", default=0.3, min=0.0, max=1.0, step=0.01,
                    tooltip="The inner blocks are computed again when what enters them has changed by more than this share. "
                    "Higher: faster, less like the result without the cache. 0: off. For SVD in 10 steps of align_your_steps: 0.4.",
                ),
                io.Int.Input(
                    "depth", default=2, min=1, max=11, advanced=True, optional=True,
                    tooltip="Blocks at each end of the UNet that every step computes. More: slower steps, a result more like the "
                    "one without the cache.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True, optional=True,
                    tooltip="Share of the sampling after which the cache acts. Before it each step is computed in full.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True, optional=True,
                    tooltip="Share of the sampling until which the cache acts. After it each step is computed in full.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the cache. After a run the node says how much was computed."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, threshold=None, start_percent=None, end_percent=None):
        """True, or what is wrong. A linked input is None."""
        def check():
            in_schema(NODE, cls.define_schema(), threshold=threshold, start_percent=start_percent, end_percent=end_percent)
            ends = numbers(start_percent=start_percent, end_percent=end_percent)
            if len(ends) == 2:
                in_order(NODE, **ends)

        return passes(NODE, check)

    @classmethod
    def execute(
        cls, model, threshold: float, depth: int = 2, start_percent: float = 0.0, end_percent: float = 1.0
    ) -> io.NodeOutput:
        return io.NodeOutput(with_cache(model, CacheSettings(threshold, depth, start_percent, end_percent)))
