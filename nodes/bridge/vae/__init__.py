"""Decoding the latent of a clip: `decode.py` for any VAE of the host, `video_decoder.py` for SVD's."""
