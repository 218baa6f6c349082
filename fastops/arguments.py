"""Normalising and checking the arguments that torch's signatures allow."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IntPair = int | Sequence[int]

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def integer(op: str, name: str, value: Any) -> int:
    """An int, from anything that is one; TypeError for a float or a bool."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, bool):
        raise TypeError(f"{op}(): argument '{name}' must be int, not bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}(): argument '{name}' must be int, not {type(value).__name__}") from None


def number(op: str, name: str, value: Any) -> float:
    """A float, from anything that is a real number; TypeError for text and None."""
    if isinstance(value, float):
        return value
    wrong = f"{op}(): argument '{name}' must be float, not {type(value).__name__}"
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(wrong)
    try:
        return float(value)
    except OverflowError as error:
        raise OverflowError(f"{op}: {name}: {error}") from None
    except (TypeError, ValueError, RuntimeError):  # a tensor of several elements
        raise TypeError(wrong) from None


def boolean(op: str, name: str, value: Any) -> bool:
    """A bool, Python's or numpy's; TypeError for anything else."""
    kind = type(value)
    if kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_")):
        return bool(value)
    raise TypeError(f"{op}(): argument '{name}' must be bool, not {kind.__name__}")


def pair(op: str, name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from an int or from a sequence of one or two."""
    if isinstance(value, (tuple, list, torch.Size)):
        if len(value) == 2:
            return integer(op, name, value[0]), integer(op, name, value[1])
        if len(value) == 1:
            return (integer(op, name, value[0]),) * 2
        for one in value:
            integer(op, name, one)
        raise RuntimeError(f"{op}: {name} must be an int or a tuple of two ints, got {value!r}")
    return (integer(op, name, value),) * 2


def positive(op: str, name: str, value: tuple[int, int]) -> tuple[int, int]:
    """The pair, if both are positive; torch raises RuntimeError for these."""
    if value[0] <= 0 or value[1] <= 0:
        should = "should not be zero" if 0 in value else "should be positive"
        raise RuntimeError(f"{op}: {name} {should}, got {value}")
    return _countable(op, name, value)


def non_negative(op: str, name: str, value: tuple[int, int]) -> tuple[int, int]:
    if value[0] < 0 or value[1] < 0:
        raise RuntimeError(f"{op}: {name} must be non-negative, got {value}")
    return _countable(op, name, value)


def _countable(op: str, name: str, value: tuple[int, int]) -> tuple[int, int]:
    """The pair, if products of two such numbers fit 64 bits."""
    if value[0] >= 2**31 or value[1] >= 2**31:
        raise RuntimeError(f"{op}: {name} must be less than 2**31, got {value}")
    return value


def tensor(op: str, name: str, x: Any, dtypes: tuple[torch.dtype, ...] = FLOATING) -> Tensor:
    """x, if it is a strided tensor of one of the dtypes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}(): argument '{name}' must be Tensor, not {type(x).__name__}")
    if x.dtype not in dtypes:
        known = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise NotImplementedError(
            f"{op}: {name} has dtype {x.dtype}, which is not supported; supported: {known}"
        )
    if x.layout is not torch.strided or x.is_nested:  # a call saved where all is well
        dense(op, name, x)
    return x


def dense(op: str, name: str, x: Tensor) -> None:
    """NotImplementedError for a sparse or a nested tensor."""
    if x.layout is not torch.strided or x.is_nested:
        layout = "nested" if x.is_nested else x.layout
        raise NotImplementedError(
            f"{op}: {name} has layout {layout}; only dense (strided) tensors are supported"
        )


def batched(op: str, x: Tensor) -> tuple[Tensor, bool]:
    """An (N, C, H, W) view of a 3-d or 4-d input, and whether the batch was added."""
    if x.dim() == 4:
        return x, False
    if x.dim() == 3:
        return x.contiguous().unsqueeze(0), True
    raise RuntimeError(
        f"{op}: expected a 3-d (C, H, W) or 4-d (N, C, H, W) input, got shape {tuple(x.shape)}"
    )


def same_device(op: str, **tensors: Tensor | None) -> None:
    """RuntimeError unless all tensors are on one device."""
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise RuntimeError(f"{op}: expected all tensors to be on the same device, but got {listed}")


def same_dtype(op: str, **tensors: Tensor | None) -> None:
    """RuntimeError unless all tensors have one dtype."""
    dtypes = {name: t.dtype for name, t in tensors.items() if t is not None}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise RuntimeError(f"{op}: expected all tensors to have the same dtype, but got {listed}")


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for a device type ('meta' knows no autocast)."""
    return device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type)


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """The floating-point tensors in autocast's low precision, where autocast is on (fp64 stays)."""
    if not autocasts(x.device.type):
        return x, *others
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t
        for t in (x, *others)
    )


class _Unequal(tuple):  # type: ignore[type-arg]
    """A cache key that equals nothing but itself: (2.0, 2) must not find the entry of (2, 2)."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


def hashable(value: Any) -> Any:
    """A number or sequence as a key for the caches of options. Numbers that can change or that do not
    hash (a tensor's or numpy's) become plain ones here."""
    if isinstance(value, (tuple, list)):
        if all(type(v) is int or v is None for v in value):
            return tuple(value)
        return _Unequal(hashable(v) for v in value)
    if value is None or isinstance(value, (int, float, str, torch.SymInt)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return _Unequal([value])


def allocatable(op: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a result, if its elements can be counted; torch raises RuntimeError too."""
    if all(type(size) is int for size in shape) and math.prod(shape) >= 2**62:
        raise RuntimeError(
            f"{op}: the result would have shape {tuple(shape)}, more elements than can be counted"
        )
    return shape


ACTIVATIONS = ("relu",)


def activation(op: str, value: str | None) -> str | None:
    """The name of an activation that can be fused, or None."""
    if value is not None and value not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"{op}: activation {value!r} is not supported; supported: None, {known}")
    return value
