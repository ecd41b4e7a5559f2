"""Kernels in Triton for activations whose channels lie next to one another; `card_kernels` says when they run.

Sums are in fp32. Activations are [images, rows, channels] in memory: rows are pixels, or the pixels of all frames of a video.
"""

import torch
import triton
import triton.language as tl

CHANNELS = 64  # of a program
ROWS = 64  # of a program at a time
CHUNKS = 32  # of the statistics that are pooled at a time
VALUES = 1024  # of a program that works on each by itself
PROGRAMS = 1024  # so many at least are to sum, where there are rows enough: several for each multiprocessor


@triton.jit
def _moments(x, shift, means, squares, rows, channels, rows_of_shift, chunk, SHIFTS: tl.constexpr, ROWS: tl.constexpr,
             CHANNELS: tl.constexpr):
    """Of a chunk of the rows: each channel's mean, and the sum of squared deviations from it."""
    index, image = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    x += image.to(tl.int64) * rows * channels
    first, last = index * chunk, tl.minimum((index + 1) * chunk, rows)
    shift += image.to(tl.int64) * (rows // rows_of_shift) * channels
    # deviations from the first row: sums of squares of the values themselves would cancel
    pivot = tl.load(x + first.to(tl.int64) * channels + c, mask=inside, other=0.0).to(tl.float32)
    if SHIFTS:
        pivot += tl.load(shift + first // rows_of_shift * channels + c, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    square = tl.zeros((ROWS, CHANNELS), tl.float32)
    start = first
    while start < last:  # no range: Triton's interpreter takes no values of a kernel's in it
        r = start + tl.arange(0, ROWS)
        mask = (r < last)[:, None] & inside[None, :]
        value = tl.load(x + r.to(tl.int64)[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        if SHIFTS:
            value += tl.load(shift + (r // rows_of_shift)[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value - pivot[None, :], 0.0)
        total += value
        square += value * value
        start += ROWS
    mean = tl.sum(total, 0) / (last - first)
    place = (image * tl.num_programs(0) + index) * channels + c
    tl.store(means + place, mean + pivot, mask=inside)
    tl.store(squares + place, tl.sum(square, 0) - mean * mean * (last - first), mask=inside)


@triton.jit
def _pool(means, squares, weight, bias, scales, offsets, rows, channels, of_group, chunk, chunks, eps, CHUNKS: tl.constexpr,
          CHANNELS: tl.constexpr):
    """Of a group: what its channels are multiplied with, and what is added then (Chan et al. 1979)."""
    group, image = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, CHANNELS)
    inside = place < of_group
    c = group * of_group + place
    total = tl.zeros((CHUNKS, CHANNELS), tl.float32)
    start = 0 * chunks
    while start < chunks:
        p = start + tl.arange(0, CHUNKS)
        count = tl.minimum(chunk, rows - p * chunk).to(tl.float32)
        mask = (p < chunks)[:, None] & inside[None, :]
        total += count[:, None] * tl.load(means + (image * chunks + p)[:, None] * channels + c[None, :], mask=mask, other=0.0)
        start += CHUNKS
    mean = tl.sum(total) / rows / of_group
    square = tl.zeros((CHUNKS, CHANNELS), tl.float32)
    start = 0 * chunks
    while start < chunks:
        p = start + tl.arange(0, CHUNKS)
        count = tl.minimum(chunk, rows - p * chunk).to(tl.float32)
        mask = (p < chunks)[:, None] & inside[None, :]
        at = (image * chunks + p)[:, None] * channels + c[None, :]
        off = tl.load(means + at, mask=mask, other=0.0) - mean
        square += tl.where(mask, tl.load(squares + at, mask=mask, other=0.0) + count[:, None] * off * off, 0.0)
        start += CHUNKS
    scale = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32) * tl.rsqrt(tl.sum(square) / rows / of_group + eps)
    offset = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32) - mean * scale
    tl.store(scales + image * channels + c, scale, mask=inside)
    tl.store(offsets + image * channels + c, offset, mask=inside)


@triton.jit
def _apply(x, shift, scales, offsets, out, rows, channels, rows_of_shift, SHIFTS: tl.constexpr, SILU: tl.constexpr,
           ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    mask = (r < rows)[:, None] & inside[None, :]
    at = image * rows * channels + r.to(tl.int64)[:, None] * channels + c[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if SHIFTS:
        row = image * (rows // rows_of_shift) + r // rows_of_shift
        value += tl.load(shift + row[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scales + image * channels + c, mask=inside, other=0.0)
    offset = tl.load(offsets + image * channels + c, mask=inside, other=0.0)
    value = value * scale[None, :] + offset[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add(x, change, bias, mix_factor, out, rows, channels, BLENDS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    mask = (r < rows)[:, None] & inside[None, :]
    at = r[:, None] * channels + c[None, :]
    value = tl.load(change + at, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    if BLENDS:
        value = value / (1.0 + tl.exp(tl.load(mix_factor).to(tl.float32)))
    value += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _geglu(x, out, count, width, VALUES: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    mask = at < count
    row = at // width
    place = row * width + at  # of the value in a row twice as wide
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + place + width, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, (value * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))).to(out.dtype.element_ty), mask=mask)


def group_norm(x, weight, bias, groups: int, eps: float, shift, silu: bool):
    """As `card_kernels.group_norm`, of x whose channels lie next to one another."""
    images, channels = x.shape[:2]
    rows = x.numel() // images // channels
    rows_of_shift = rows if shift is None else rows * images // shift.shape[0]
    blocks = triton.cdiv(channels, CHANNELS)
    chunk = ROWS * max(1, rows * images * blocks // (ROWS * PROGRAMS))
    chunks = triton.cdiv(rows, chunk)
    means, squares = torch.empty((2, images, chunks, channels), dtype=torch.float32, device=x.device)
    scales, offsets = torch.empty((2, images, channels), dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    shifts = shift is not None
    shift = x if shift is None else shift.contiguous()
    of_group = channels // groups
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _moments[chunks, blocks, images](
            x, shift, means, squares, rows, channels, rows_of_shift, chunk, SHIFTS=shifts, ROWS=ROWS, CHANNELS=CHANNELS)
        _pool[groups, images](
            means, squares, weight, bias, scales, offsets, rows, channels, of_group, chunk, chunks, eps, CHUNKS=CHUNKS,
            CHANNELS=triton.next_power_of_2(of_group))
        _apply[triton.cdiv(rows, ROWS), blocks, images](
            x, shift, scales, offsets, out, rows, channels, rows_of_shift, SHIFTS=shifts, SILU=silu, ROWS=ROWS, CHANNELS=CHANNELS)
    return out


def add(x, change, bias, mix_factor):
    """x + share * (change + bias), the share 1 or 1 - sigmoid(mix_factor); channels of x and change lie next to one another."""
    channels = x.shape[1]
    rows = x.numel() // channels
    out = torch.empty_like(x)
    factor = bias if mix_factor is None else mix_factor
    with torch.cuda.device_of(x):
        _add[triton.cdiv(rows, ROWS), triton.cdiv(channels, CHANNELS)](
            x, change, bias, factor, out, rows, channels, BLENDS=mix_factor is not None, ROWS=ROWS, CHANNELS=CHANNELS)
    return out


def geglu(x):
    """As `card_kernels.geglu`, of a dense x."""
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    with torch.cuda.device_of(x):
        _geglu[triton.cdiv(out.numel(), VALUES),](x, out, out.numel(), width, VALUES=VALUES)
    return out
