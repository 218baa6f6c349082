"""Index arithmetic of Triton kernels: csrc/geometry.h, in Triton.

Integers are divided towards zero on a GPU and downwards in the interpreter: so nothing negative is divided.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ceil_div(a, b):
    """a / b, rounded up, of what is not negative; 0 for a < 0."""
    return (tl.maximum(a, 0) + b - 1) // b


@triton.jit
def tile(PIXELS, C, BP: tl.constexpr, BC: tl.constexpr, INDEX: tl.constexpr):
    """This program's pixels (BP, 1) and channels (1, BC), and which of them exist."""
    tiles = tl.cdiv(C, BC)
    program = tl.program_id(0).to(INDEX)
    at = program // tiles
    pixel = (at * BP + tl.arange(0, BP))[:, None]
    channel = ((program - at * tiles) * BC + tl.arange(0, BC))[None, :]
    return pixel, channel, (pixel < PIXELS) & (channel < C)


@triton.jit
def place(pixel, H, W):
    """(image, row, column) of a pixel."""
    column = pixel % W
    row = pixel // W
    return row // H, row % H, column


@triton.jit
def window(o, SIZE, OUT, KERNEL, STRIDE, PAD, ADAPTIVE: tl.constexpr):
    """[begin, end) of window o along an axis of SIZE positions; begin may be before the first."""
    if ADAPTIVE:
        begin = o * SIZE // OUT
        end = ((o + 1) * SIZE + OUT - 1) // OUT
    else:
        begin = o * STRIDE - PAD
        end = tl.minimum(begin + KERNEL, SIZE)
    return begin, end


@triton.jit
def window_count(o, SIZE, OUT, KERNEL, STRIDE, PAD, ADAPTIVE: tl.constexpr, PADDING_COUNTS: tl.constexpr):
    """How many positions window o counts in an average."""
    begin, end = window(o, SIZE, OUT, KERNEL, STRIDE, PAD, ADAPTIVE)
    if PADDING_COUNTS:
        return tl.minimum(begin + KERNEL, SIZE + PAD) - begin
    else:
        return end - tl.maximum(begin, 0)


@triton.jit
def windows_covering(i, SIZE, OUT, SPAN, STRIDE, PAD, ADAPTIVE: tl.constexpr):
    """[begin, end) of the windows whose span of SPAN positions covers position i."""
    if ADAPTIVE:
        begin = i * OUT // SIZE
        end = tl.minimum(((i + 1) * OUT + SIZE - 1) // SIZE, OUT)
    else:
        begin = ceil_div(i + PAD - SPAN + 1, STRIDE)
        end = tl.minimum((i + PAD) // STRIDE + 1, OUT)
    return begin, end
