"""Makers of what the repository holds: texts, workflows and their images, the blueprint, images of nodes and of help pages."""
