"""A UNet file to a MODEL of the host, and what lies next to the UNet in a full checkpoint.

`unet_loader.py`: loading, the host's class of the family around our network. `checkpoint_parts.py`: CLIP, VAE and
CLIP_VISION of the same file. `video_models.py`: the host's classes for video, which report the memory of our network.
`host_unet.py`: our network under the host's calling convention. `host_layers.py`: its layers, which packs may call as the
host's. `host_hooks.py`: patches of other nodes and packs. `host_operations.py`, `host_attention.py`: which kernels layers
and attention take. `layer_weights.py`: a layer's weights where it is not called. `memory_budget.py`: the memory that a clip
needs, and calls that keep to it. `trained_length.py`: the clip length that a model was trained on. `watched_files.py`:
files that weights are mapped from. `lora_names.py`: what LoRA files call the layers of a network. `lora_patches.py`: a LoRA
onto a MODEL.
"""
