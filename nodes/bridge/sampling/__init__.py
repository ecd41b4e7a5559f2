"""Sampling a video through the host.

`runs.py`: the host's runs, one or more for the `takes.py` of a clip. `guidance.py`: guidance by frame. `options.py`: what Video
Options sets. `windows.py`: clips longer than the model was trained on, with `colors.py` and `window_step.py`. `lanes.py`: calls on
several devices at a time; `wavefront.py`: of several steps, `takes_sampler.py`: of several takes. `training_range.py`: warnings
where a clip is far from the training. `preview.py`: all frames while they form, drawn by `preview_sheet.py`;
`decoded_preview.py`: the same frames once they are decoded.
"""
