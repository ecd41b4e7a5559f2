"""The only place that knows ComfyUI, in rooms by the host's own concepts.

`model/`: a UNet file to a MODEL. `control/`: CONTROL_NETs. `sampling/`: guidance, windows, preview. `vae/`: decoding a clip.
`info/`: what files are, for panels and people. `inputs/`: what nodes check and prepare. Rooms import in this order, from the
last to the first: info → control, sampling, vae → model → inputs; never back.
"""
