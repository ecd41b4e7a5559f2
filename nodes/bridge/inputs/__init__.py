"""What nodes check and prepare of their inputs.

`curve.py`: curves as text. `ranges.py`: numbers. `images.py`: images and masks. `image_to_video.py`: SVD's conditioning.
"""
