"""Tensors as rows × channels, in either layout: a row is one element of every channel. How sums over rows
and elementwise kernels share them out.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.runtime import (
    PROGRAMS,
    Launch,
    accumulator,
    accumulator_dtype,
    ceil_div,
    element_bytes,
    index_type,
    next_power_of_2,
)


@triton.jit
def number(n, T: tl.constexpr):
    """An argument, which may be a constant, as a tensor (1, 1)."""
    return tl.full((1, 1), n, T)


@triton.jit
def multiply_add(a, b, c):
    """a · b + c, rounded once; b and c may have fewer dimensions of size > 1."""
    return tl.fma(a, tl.broadcast_to(b, a.shape), tl.broadcast_to(c, a.shape))


@triton.jit
def element(row, channel, C, S, LAST: tl.constexpr):
    """Where an element lies; S: elements of a plane."""
    if LAST:
        return row * C + channel
    else:
        n = row // S
        return (n * C + channel) * S + row - n * S


@triton.jit
def my_channels(C, BC: tl.constexpr, INDEX: tl.constexpr):
    """This program's channels (1, BC), and its number among those that have them."""
    tiles = tl.cdiv(C, BC)
    program = tl.program_id(0).to(INDEX)
    number = program // tiles
    return ((program - number * tiles) * BC + tl.arange(0, BC))[None, :], number


@triton.jit
def parameter(values, channel, exists, absent: tl.constexpr, ACC: tl.constexpr):
    """Of each channel; `absent` where there are no values."""
    if values is None:
        return tl.full(channel.shape, absent, ACC)
    else:
        return tl.load(values + channel, mask=exists, other=absent).to(ACC)


@triton.jit
def total(partials, channel, exists, SPLITS, C, BS: tl.constexpr, BC: tl.constexpr):
    """Σ over the parts, in fp64: (1, BC)."""
    sum = tl.zeros((BS, BC), tl.float64)
    for first in range(0, SPLITS, BS):
        part = first + tl.arange(0, BS)[:, None]
        sum += tl.load(partials + part * C + channel, mask=exists & (part < SPLITS), other=0)
    return tl.sum(sum, 0)[None, :]


# ---- launchers ----------------------------------------------------------------------------------

# Parts that the combining kernels take at once.
PARTS = 32


class Slab:
    """How rows × channels are shared out."""

    def __init__(self, dtype: _C.DType, channels_last: bool, n: int, c: int, planes: int) -> None:
        """planes: elements of a plane."""
        self.planes, self.rows, self.c, self.last = planes, n * planes, c, channels_last
        self.block_c = min(next_power_of_2(c), 64) if self.last else 1
        self.block_r = max(2048 // element_bytes(dtype) // self.block_c, 1)
        self.tiles = ceil_div(c, self.block_c) if c else 0
        # A chunk is 8 rounds of a program at least, and there are no more parts than programs to fill a GPU.
        parts = max(1, PROGRAMS // max(self.tiles, 1))
        rounds = max(8, ceil_div(ceil_div(self.rows, self.block_r), parts))
        self.chunk = rounds * self.block_r
        self.splits = ceil_div(self.rows, self.chunk)
        self.index = index_type(self.rows * max(c, 1), (self.splits + 1) * self.chunk * max(c, 1))
        self.dtype = dtype

    def layout(self) -> dict[str, Any]:
        return {
            "ROWS": self.rows, "C": self.c, "S": self.planes, "LAST": self.last, "INDEX": self.index,
            "ACC": accumulator(self.dtype), "BR": self.block_r, "BC": self.block_c,
        }  # fmt: skip

    def reduce(self, kernel: Any, **constants: Any) -> Launch:
        cut = {"CHUNK": self.chunk, "SPLITS": self.splits}
        return Launch(kernel, self.tiles * self.splits, **cut, **self.layout(), **constants)

    def combine(self, kernel: Any, **constants: Any) -> Launch:
        """For 16 channels a program."""
        some: dict[str, Any] = {"ROWS": self.rows, "C": self.c, "SPLITS": self.splits, "INDEX": self.index}
        return Launch(kernel, ceil_div(self.c, 16), warps=2, BS=PARTS, BC=16, **some, **constants)

    def map(self, kernel: Any, **constants: Any) -> Launch:
        return Launch(kernel, self.tiles * ceil_div(self.rows, self.block_r), **self.layout(), **constants)

    def partials(self, like: Tensor, sums: int) -> Tensor:
        return torch.empty(sums * self.splits * self.c, dtype=torch.float64, device=like.device)

    def coefficients(self, like: Tensor, count: int) -> Tensor:
        return torch.empty(count * self.c, dtype=accumulator_dtype(self.dtype), device=like.device)
