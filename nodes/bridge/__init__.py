"""The only place that knows ComfyUI, in rooms by the host's own concepts.

`model/`: a UNet file to a MODEL. `control/`: CONTROL_NETs. `sampling/`: guidance, windows, preview. `vae/`: decoding a clip.
`pool/`: a MODEL's network on several machines. `info/`: what files are, for panels and people. `inputs/`: what nodes check and
prepare. Imports: info → control, model; control → model, inputs; pool → sampling, model; sampling → inputs; vae → model. Never the
other way.
"""
