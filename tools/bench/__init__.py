"""Measurements: quality of videos, long videos, time of chunks and of ControlNets. `python dev.py bench` runs them."""
