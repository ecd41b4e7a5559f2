"""The nodes of the pack, as the host asks for them."""

from comfy_api.latest import ComfyExtension, io


class TemporalUNetExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return []


async def comfy_entrypoint() -> TemporalUNetExtension:
    return TemporalUNetExtension()
