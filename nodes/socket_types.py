"""Types of sockets that this pack brings."""

from comfy_api.latest import io

Residuals = io.Custom("CONTROL_RESIDUALS")
VideoOptions = io.Custom("VIDEO_OPTIONS")  # of `VideoOptions` in nodes/bridge/sampling/options.py
