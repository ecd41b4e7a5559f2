"""Sampling a video through the host.

`guidance.py`: guidance by frame, and the run itself. `options.py`: what Video Options sets. `windows.py`: clips longer than the
model was trained on, with `colors.py`. `training_range.py`: warnings where a clip is far from the training. `preview.py`: all
frames while they form, drawn by `preview_sheet.py`; `decoded_preview.py`: the same frames once they are decoded.
"""
