"""torch's numerical checks of derivatives, of a case of tests/cases."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fastops.functional as G
from tests.cases import Case


def function_and_inputs(
    case: Case, channels_last: bool, device: str
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The case's first output as a function of the arguments to be differentiated; and these, in fp64."""
    arguments = case.arguments(torch.float64, channels_last, device)
    wrt = case.differentiable(arguments)

    def function(*inputs: Tensor) -> Tensor:
        full = list(arguments)
        for i, t in zip(wrt, inputs, strict=True):
            full[i] = t
        result = case.call(G, *full)
        return result if isinstance(result, Tensor) else result[0]

    return function, [arguments[i].clone().requires_grad_() for i in wrt]


# Differences in fp64 are good to many more digits than torch's defaults ask for: 1 % and less must be seen.
TOLERANCE = dict(atol=1e-7, rtol=1e-5)


def gradcheck(f: Callable[..., Tensor], x: list[Tensor], fast: bool) -> bool:
    return torch.autograd.gradcheck(f, x, fast_mode=fast, **TOLERANCE)


def forward_gradcheck(f: Callable[..., Tensor], x: list[Tensor], fast: bool) -> bool:
    modes = dict(check_forward_ad=True, check_backward_ad=False)
    return torch.autograd.gradcheck(f, x, fast_mode=fast, **modes, **TOLERANCE)


def gradgradcheck(f: Callable[..., Tensor], x: list[Tensor], fast: bool) -> bool:
    return torch.autograd.gradgradcheck(f, x, fast_mode=fast, **TOLERANCE)


# By name: each asks (function, inputs), in one random direction (`fast`) or by every element.
CHECKS: dict[str, Callable[..., bool]] = {
    "gradcheck": gradcheck,
    "forward-mode gradcheck": forward_gradcheck,
    "gradgradcheck": gradgradcheck,
}
