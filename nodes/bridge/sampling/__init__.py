"""Sampling a video through the host.

`guidance.py`: guidance by frame, and the run itself. `windows.py`: clips longer than the model was trained on, with `colors.py`.
`preview.py`: all frames while they form, drawn by `preview_sheet.py`.
"""
