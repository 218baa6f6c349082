"""The test cases: one table per family, run by every test over every backend, dtype and layout.

A case is one call of a function that torch.nn.functional and fastops.functional both have, with the
reason why it is in the table; or one call of fastops' and what torch composes of several.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The functions that are torch.nn.functional's too, and whose every argument is asked.
FUNCTIONS = (
    "conv2d",
    "conv_transpose2d",
    "avg_pool2d",
    "max_pool2d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "max_unpool2d",
    "batch_norm",
    "interpolate",
)
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
Shape = tuple[int, ...]
TORCH_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))  # what older ones do not take is no case
JUDGED = (2, 13)  # the torch whose errors are asked; others accept some calls, or refuse them otherwise


@dataclass(frozen=True)
class Case:
    op: str  # the function's name
    shapes: tuple[Shape, ...]  # of the tensor arguments, which come first
    kwargs: dict[str, Any]
    reason: str
    # Builds the arguments from random tensors of those shapes, where random tensors alone will not do.
    make: Callable[..., tuple[Any, ...]] | None = None
    # Positions of the arguments to differentiate; by default every floating-point tensor.
    wrt: tuple[int, ...] | None = None
    # Sizes too large for gradcheck or for the slow oracle.
    large: bool = False
    dtypes: tuple[torch.dtype, ...] = FLOATING
    # What is called, given the module (torch's, fastops' or the oracle) before the arguments, where it is
    # not the same call in all of them.
    composed: Callable[..., Any] | None = None

    def __str__(self) -> str:
        shapes = " ".join("x".join(map(str, s)) for s in self.shapes)
        options = " ".join(f"{k}={v}" for k, v in self.kwargs.items())
        return f"{self.op} {shapes} {options}".replace(", ", ",").strip()

    def turn(self, count: int, kind: str = "") -> int:
        """A number below count, the same each time: which of so many ways a slow backend is asked in."""
        return zlib.crc32(f"{self} {kind}".encode()) % count

    def call(self, module: Any, *arguments: Any) -> Any:
        """The case's function in torch.nn.functional, fastops.functional or the oracle."""
        if self.composed is not None:
            return self.composed(module, *arguments, **self.kwargs)
        return getattr(module, self.op)(*arguments, **self.kwargs)

    def arguments(
        self, dtype: torch.dtype, channels_last: bool = False, device: str = "cpu", seed: int = 0
    ) -> tuple[Any, ...]:
        """Random arguments, the same for a given seed. 16-bit values are exact in every wider dtype."""
        generator = torch.Generator().manual_seed(seed)
        tensors = []
        for shape in self.shapes:
            t = (
                torch.randn(shape, generator=generator, dtype=torch.float32)
                .to(torch.bfloat16)
                .to(device, dtype)
            )
            if channels_last and t.dim() == 4:
                t = t.contiguous(memory_format=torch.channels_last)
            tensors.append(t)
        return tuple(tensors) if self.make is None else self.make(*tensors, **self.kwargs)

    def differentiable(self, arguments: tuple[Any, ...]) -> tuple[int, ...]:
        if self.wrt is not None:
            return self.wrt
        return tuple(
            i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.dtype.is_floating_point
        )


def all_cases() -> list[Case]:
    from tests.cases import batch_norm, conv, interpolate, pool

    return [*conv.CASES, *pool.CASES, *batch_norm.CASES, *interpolate.CASES]
