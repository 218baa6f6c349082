"""What the cases of large.py share: tensors of 2³¹ elements and some, of memory that nobody has written, and
whether there is enough. The values of a `tall` one are zero, but for bands of rows at both ends and around
elements 2³⁰ and 2³¹.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from tests.reliability.tally import Skip
from tests.test_large_tensors import NORESERVE

EDGE = 2**31
EDGES = (EDGE - 1, EDGE, EDGE + 1)
DTYPE = torch.bfloat16
ROW = 256  # elements of a row of pixels
ROWS = 2**23 + 36  # in which element 2³¹ is inside the last band
BAND = 40  # rows
LAYOUTS = ((1, False), (8, False), (8, True))  # channels, and whether channels_last


def sparse(count: int, dtype: torch.dtype) -> Tensor:
    """Zeros that have no memory until they are written to."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype)


def need(gibibytes: float) -> None:
    available = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    if available < (gibibytes + 2) * 2**20:
        raise Skip(f"needs {gibibytes + 2:.0f} GiB of free memory")


def nonzeros(large: Tensor) -> int:
    """How many elements of a (1, c, h, w) are not zero, in steps that fit into caches."""
    order = (0, 2, 3, 1) if large.stride(1) == 1 else (0, 1, 2, 3)
    return sum(int(part.count_nonzero()) for part in large.permute(order).reshape(-1).split(2**26))


def random(*shape: int, seed: int = 0, signed: bool = False) -> Tensor:
    """Sizes between 1 and 2, exact in bf16."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(64, 129, shape, generator=generator).to(DTYPE) / 64
    return sizes * (torch.randint(0, 2, shape, generator=generator) * 2 - 1) if signed else sizes


def bands(rows: int) -> list[tuple[int, int]]:
    return [(a, a + BAND) for a in (0, rows // 2 - BAND // 2, rows - BAND)]


def tall(channels: int, channels_last: bool, rows: int = ROWS, seed: int = 0) -> Tensor:
    """(1, channels, rows, columns) of zeros, but for the bands; `rows` of ROW elements in all."""
    if channels_last:
        t = sparse(rows * ROW, DTYPE).view(1, rows, ROW // channels, channels).permute(0, 3, 1, 2)
    else:
        rows //= channels
        t = sparse(channels * rows * ROW, DTYPE).view(1, channels, rows, ROW)
    for k, (a, b) in enumerate(bands(t.shape[2])):
        t[:, :, a:b] = random(*t[:, :, a:b].shape, seed=seed + k, signed=True)
    return t


def laid_out(channels: int, channels_last: bool) -> str:
    return f"{channels} channels{', channels_last' if channels_last else ''}"
