"""Temporal UNet: the UNet family of diffusion models for ComfyUI, video first."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
