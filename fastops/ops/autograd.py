"""When a raw op needs its autograd Function, and when it can be called directly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from fastops.backends import recording

_functorch_is_active = torch._C._are_functorch_transforms_active


def forward_mode_is_on() -> bool:
    """Whether a Function's jvp may be called, for which it has to save tensors."""
    return forward_ad._current_level >= 0 or _functorch_is_active()


def is_differentiated(*args: Any) -> bool:
    """Whether a call with these arguments is to be recorded, in reverse or in forward mode."""
    if torch.is_grad_enabled():
        for a in args:
            if isinstance(a, torch.Tensor) and a.requires_grad:
                return True
    return forward_mode_is_on()


def written(t: Tensor) -> None:
    """A kernel has written to a tensor: whoever saved it for a backward pass must notice."""
    if not t.is_inference():
        increment_version(t)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` where no transform of functorch's is active.

    ``Function.apply`` is Python before it is C++, and binds the arguments with ``inspect.signature`` on
    every call: 60 µs. Only functorch's transforms need that part; ours are given all arguments in order.
    """
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def call(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``, or just its forward where nothing is to be differentiated: the C++ part of
    ``apply`` costs about 5 µs more than that."""
    if is_compiling():
        return function.dispatch(*args)  # type: ignore[attr-defined]  (see library.py)
    if _functorch_is_active():
        return function.apply(*args)
    current = recording()
    differentiated = is_differentiated(*args) and (current is None or current.graph)
    result = apply(function, *args) if differentiated else function.forward(*args)
    if current is not None:
        current.functions.append((function, args, result))
    return result
