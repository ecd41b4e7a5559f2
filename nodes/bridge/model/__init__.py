"""A UNet file to a MODEL of the host.

`unet_loader.py`: loading, the host's class of the family around our network. `video_models.py`: those classes for video, which
report the memory of our network. `host_unet.py`: our network under the host's calling convention. `host_layers.py`: its layers,
which packs may call as the host's. `host_hooks.py`: patches of other nodes and packs. `memory_budget.py`: the memory that a clip
needs, and calls that keep to it. `trained_length.py`: the clip length that a model was trained on.
"""
