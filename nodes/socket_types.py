"""Types of sockets that this pack brings."""

from comfy_api.latest import io

Residuals = io.Custom("CONTROL_RESIDUALS")
