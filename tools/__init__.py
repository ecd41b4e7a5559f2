"""What makes, measures and trains, and is not shipped.

environments: ComfyUI and its environments in the cache; renew_locks: the lock files in locks/ that they are made from.
server: a running ComfyUI. rooms: the tests in processes; processes: whatever else dev.py starts. lint: ruff and mypy.
untrained: small model files of random weights. assets/: locales, workflows and images.
bench/: measurements. miniature/: the trained miniature of Stable Video Diffusion.
"""
