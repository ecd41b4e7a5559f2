"""Reading weights from files and writing them; the networks import nothing from here.

`checkpoint.py` opens a file and accounts for every key of the network in it: start there; `network_file.py` is what it gives, and
reads the tensors. `kinds.py` says what is in a file
by its names alone, `detect.py` detects which UNet it is, `diffusers_names.py` maps the names of diffusers' layout,
`diffusers_folder.py` reads what stands next to the weights in its folders, `controlnet_file.py` and `controlnext_file.py` read the
nets that steer a UNet. `files.py` opens safetensors, `pickles.py` pickled files after `pickle_check.py` has looked through them,
`shards.py` sets of several files, `on_disk.py` is what these need, `errors.py` the one error. `residual_file.py` stores a
ControlNet's residuals.

Weights with scales of their own: `scales.py`, of which `four_bit.py` is bitsandbytes' kind. `markers.py` names the tensors that say
how a network was trained.

LoRA: `lora_file.py` opens such a file and sorts its keys by layers, `lora_shapes.py` says whether they fit a weight.

GGUF: `gguf_file.py` opens such files after `gguf_header.py` has read where their tensors are. `ggml_types.py` has the number
formats and dequantizes them; the formats themselves are in `ggml_blocks.py`, `ggml_k_types.py` and `ggml_grid_types.py` with
`ggml_grids.py`.

Writing: `save_plan.py` says what a file will hold, `network_writer.py` writes it tensor by tensor, `gguf_writer.py` what GGUF has
before the tensors, `ggml_quantize.py` the blocks of its formats.
"""
