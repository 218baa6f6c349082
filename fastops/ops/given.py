"""Whether what an op of the library is given fits together: sizes, types and places of its tensors, and the
lengths and signs of its options.

For whoever calls ``torch.ops.fastops.…``. The calls of fastops.functional are checked there, and come by
here only where a compiler has made ops of them. What kernels cannot serve they refuse themselves
(csrc/validate.h); how large a tensor is they cannot know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastops import arguments
from fastops.ops import layout

Shape = tuple[int, ...]


def images(op: str, dtypes: tuple[torch.dtype, ...] = arguments.FLOATING, **tensors: Tensor) -> None:
    """Raises unless these are (N, C, H, W), of one of the dtypes."""
    for name, t in tensors.items():
        arguments.tensor(op, name, t, dtypes)
        sizes(op, 4, **{name: t.shape})


def sizes(op: str, count: int, **values: Any) -> None:
    """Raises unless these have as many elements."""
    for name, value in values.items():
        if len(value) != count:
            raise RuntimeError(f"{op}: {name} should have {count} sizes, but got {tuple(value)}")


def same_shape(op: str, shape: Shape, **tensors: Tensor | None) -> None:
    """Raises unless these, where they are there, have this shape."""
    for name, t in tensors.items():
        if t is not None and tuple(t.shape) != tuple(shape):
            raise RuntimeError(f"{op}: {name} should have shape {tuple(shape)}, but has {tuple(t.shape)}")


def vectors(op: str, count: int, dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """Raises unless these, where they are there, have an element for each channel, of this dtype."""
    for name, t in tensors.items():
        if t is not None and (t.numel() != count or t.dtype != dtype):
            raise RuntimeError(
                f"{op}: {name} should have {count} elements of {dtype}, but has shape {tuple(t.shape)} and "
                f"{t.dtype}"
            )


def positive(op: str, **pairs: Any) -> None:
    """Raises unless these are pairs of positive numbers."""
    sizes(op, 2, **pairs)
    for name, pair in pairs.items():
        arguments.positive(op, name, pair)


def non_negative(op: str, **pairs: Any) -> None:
    sizes(op, 2, **pairs)
    for name, pair in pairs.items():
        arguments.non_negative(op, name, pair)


def known_format(op: str, value: torch.memory_format | None) -> None:
    """Raises unless this is a layout that kernels know, or None."""
    if value not in (None, layout.CONTIGUOUS, layout.CHANNELS_LAST):
        raise ValueError(f"{op}: memory_format should be contiguous or channels_last, but is {value}")
