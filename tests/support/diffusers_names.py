"""Names of SVD's tensors in diffusers for their names on disk."""

import re

RES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}
STEM = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}


def to_diffusers(name):
    """A tensor's name in diffusers for its name on disk."""
    layer, _, parameter = name.rpartition(".")
    if layer in STEM:
        return f"{STEM[layer]}.{parameter}"
    kind, rest = re.match(r"(input_blocks|middle_block|output_blocks)\.(.*)", name).groups()
    if kind == "middle_block":
        part, rest = rest.split(".", 1)
        if part == "1":
            return "mid_block.attentions.0." + transformer(rest)
        return f"mid_block.resnets.{int(part) // 2}." + res_block(rest)
    index, part, rest = rest.split(".", 2)
    if kind == "input_blocks":
        level, place = divmod(int(index) - 1, 3)
        block = f"down_blocks.{level}."
        if rest.startswith("op."):
            return block + "downsamplers.0.conv." + parameter
    else:
        level, place = divmod(int(index), 3)
        block = f"up_blocks.{level}."
        if rest.startswith("conv."):
            return block + "upsamplers.0.conv." + parameter
    if part == "0":
        return f"{block}resnets.{place}." + res_block(rest)
    return f"{block}attentions.{place}." + transformer(rest)


def res_block(name):
    if name.startswith("time_mixer."):
        return name
    side = "temporal_res_block." if name.startswith("time_stack.") else "spatial_res_block."
    layer, _, parameter = name.removeprefix("time_stack.").rpartition(".")
    return f"{side}{RES[layer]}.{parameter}"


def transformer(name):
    name = re.sub(r"^time_stack\.", "temporal_transformer_blocks.", name)
    name = name.replace("time_pos_embed.0.", "time_pos_embed.linear_1.")
    return name.replace("time_pos_embed.2.", "time_pos_embed.linear_2.")
