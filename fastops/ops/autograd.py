"""When a raw op needs its autograd Function, and when it can be called directly."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

_functorch_is_active = torch._C._are_functorch_transforms_active


def is_differentiated(*args: Any) -> bool:
    """Whether a call with these arguments is to be recorded, in reverse or in forward mode."""
    if torch.is_grad_enabled():
        for a in args:
            if isinstance(a, torch.Tensor) and a.requires_grad:
                return True
    return forward_ad._current_level >= 0 or _functorch_is_active()


def call(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``, or just its forward where nothing is to be differentiated.

    ``Function.apply`` costs about 5 µs, more than a small kernel.
    """
    return function.apply(*args) if is_differentiated(*args) else function.forward(*args)
