"""CONTROL_NETs of the host.

`own_control.py`: what all of ours share; `own_controlnet.py`: what those with a network share; `asked.py`: residuals that are
computed where the UNet runs; `advanced_controlnet.py`: how they answer another pack's apply node. `frame_control.py`: any control
on the frames of a clip, with `kept_hints.py` (prepared images) and `frame_weights.py` (strength by frame and region).
`svd_control.py`, `controlnext_control.py`, `stored_control.py`: a ControlNet of SVD, a ControlNeXt, stored residuals.
`hosts_controlnet.py`: the host's own loader. `pairing.py`: which control goes with which model. `compute_residuals.py`: running a
control alone.
"""
