"""What nodes check and prepare of their inputs.

`curve.py`: curves as text. `ranges.py`: numbers. `images.py`: images, videos and masks. `image_to_video.py`: SVD's conditioning.
`continuation.py`: a video and the clip that goes on from it.
"""
