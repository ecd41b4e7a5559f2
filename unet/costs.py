"""Working memory of the layers, in copies of their activations: the layers' chunk sizes and the estimates in `memory.py`.

Each is what a layer needs at its peak in addition to its input, without weights; tests/unet/test_memory.py counts them on the
meta device.
"""

TRANSFORMER = 18  # copies of its input, in a transformer block: most of them in the feed-forward
UPSAMPLE = 2  # copies of its output: the input upsampled, and what the convolution makes of it
TIME_WHOLE = 4  # copies of its input, in the residual block over time
TIME_STRIP = 6  # copies of a strip of pixels in that block, some of which are in fp32


def res_block(into: int, out: int, joins: bool) -> int:
    """Of a residual block whose input and output take `into` and `out`, in the same unit as these.

    `joins`: it makes its input of two, chunk by chunk. It needs two outputs less than this then: such blocks have the highest
    peaks, and smaller chunks keep them under those of the transformers.
    """
    return 2 * into + 3 * out if joins else max(into + out, 3 * out)
