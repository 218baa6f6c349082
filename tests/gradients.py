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


# By name: each asks (function, inputs), with one random direction (`fast`) or every element.
CHECKS: dict[str, Callable[..., bool]] = {
    "gradcheck": lambda f, x, fast: torch.autograd.gradcheck(f, x, fast_mode=fast),
    "forward-mode gradcheck": lambda f, x, fast: torch.autograd.gradcheck(
        f, x, fast_mode=fast, check_forward_ad=True, check_backward_ad=False
    ),
    "gradgradcheck": lambda f, x, fast: torch.autograd.gradgradcheck(f, x, fast_mode=fast),
}
