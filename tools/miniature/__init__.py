"""The miniature of Stable Video Diffusion: its world, training and weights; see README.md."""
