"""How Triton kernels are launched: everything that follows from the params is prepared once, and a call
hands over the tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastops import _C

# Triton's interpreter runs kernels on CPU tensors; it is chosen before Triton is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
VERSION = tuple(map(int, triton.__version__.split("+")[0].split(".")[:2]))
Run = Callable[..., None]

# As many programs as sums are cut into: four for each multiprocessor of a large GPU.
PROGRAMS = 528


def accumulator(dtype: _C.DType) -> tl.dtype:
    """The type that sums of a dtype have."""
    return tl.float64 if dtype == _C.DType.f64 else tl.float32


def accumulator_dtype(dtype: _C.DType) -> torch.dtype:
    """The same, as torch names it."""
    return torch.float64 if dtype == _C.DType.f64 else torch.float32


def element_bytes(dtype: _C.DType) -> int:
    sizes = {_C.DType.f64: 8, _C.DType.f32: 4, _C.DType.f16: 2, _C.DType.bf16: 2, _C.DType.u8: 1}
    return sizes[dtype]


def index_type(*numbers: int) -> tl.dtype:
    """The narrowest type in which none of these overflows: of elements, of coordinates and their products."""
    return tl.int32 if all(abs(n) < 2**31 - 2**16 for n in numbers) else tl.int64


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def has_tma() -> bool:
    """Whether the current GPU copies tiles by itself, and Triton can have it do so; the interpreter can."""
    if VERSION < (3, 4):
        return False
    return INTERPRETED or triton.runtime.driver.active.get_current_target().arch >= 90


def memory_from(t: Tensor, element: int) -> Tensor:
    """The tensor's memory from an element on."""
    if element == 0:
        return t
    return t.as_strided((max(t.numel() - element, 0),), (1,), t.storage_offset() + element)


class Launch:
    """A kernel, how many programs of it, and all arguments but the tensors, which come first.

    Compiled code depends on the tensors through their alignment alone (and on which are absent), so a call
    after the first one finds it by that, past Triton's own search.
    """

    def __init__(
        self, kernel: Any, programs: int, *, warps: int = 4, stages: int = 2, **arguments: Any
    ) -> None:
        if programs >= 2**31:
            raise ValueError(f"fastops: {kernel.__name__}: the tensors are too large")
        self.kernel, self.grid, self.arguments = kernel, (programs, 1, 1), arguments
        self.options = {"num_warps": warps, "num_stages": stages}
        names = [name for name in kernel.arg_names if name in arguments]
        self._values = [arguments[name] for name in names]
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *tensors: Any) -> None:
        if self.grid[0] == 0:
            return
        if INTERPRETED:
            self._compile_and_run(*tensors)
            return
        # (A tensor descriptor says for itself what code depends on.)
        aligned = (t.data_ptr() % 16 if isinstance(t, Tensor) else t is None and "none" for t in tensors)
        key = (triton.runtime.driver.active.get_current_device(), *aligned)
        compiled = self._compiled.get(key)
        if compiled is None:
            self._compiled[key] = self._compile_and_run(*tensors)
        else:
            compiled[self.grid](*tensors, *self._values)

    def _compile_and_run(self, *tensors: Any) -> Any:
        compiled = self.kernel[self.grid](*tensors, **self.arguments, **self.options)
        if INTERPRETED or triton.runtime.driver.active.get_current_target().arch < 100:
            return compiled
        # ptxas for sm_100 (12.9, 13.0) keeps a value in local memory here and there, with registers to spare;
        # told the limit that holds anyway, it does so elsewhere. One of the two is without, so far.
        if spilled_bytes(compiled) == 0:
            return compiled
        limited = {**self.options, "maxnreg": 255}
        other = self.kernel.warmup(*tensors, grid=self.grid, **self.arguments, **limited)
        return other if spilled_bytes(other) < spilled_bytes(compiled) else compiled


def spilled_bytes(compiled: Any) -> int:
    """Of local memory that a thread of a compiled kernel has."""
    compiled.run  # noqa: B018  (loads it, after which this is known)
    return int(compiled.n_spills) * 4


class Tile:
    """How programs share out pixels × channels, the same for both layouts.

    In channels_last a tile has BP pixels × BC channels. A contiguous tensor is one of n · c images of a
    single channel, and a tile has BP neighbouring pixels of them: one kernel serves both.
    """

    # Of a tile, for each of 128 threads 16 bytes.
    BYTES = 2048

    def __init__(
        self, channels_last: bool, n: int, c: int, pixels: int, dtype: _C.DType, share: int = 1
    ) -> None:
        """share: each element is worth so many."""
        self.images, self.channels = (n, c) if channels_last else (n * c, 1)
        self.pixels = self.images * pixels
        elements = self.BYTES // max(element_bytes(dtype), 2)
        self.block_c = min(next_power_of_2(self.channels), 64)
        self.block_p = max(elements // self.block_c // share, 1)
        self.channel_tiles = ceil_div(self.channels, self.block_c)
        self.programs = ceil_div(self.pixels, self.block_p) * self.channel_tiles if self.channels else 0

    def arguments(self) -> dict[str, int]:
        return {
            "PIXELS": self.pixels,
            "C": self.channels,
            "BP": self.block_p,
            "BC": self.block_c,
        }
