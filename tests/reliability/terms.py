"""How large the terms are that results are sums of.

Where they cancel, a result is much smaller than its terms, and no order of adding promises more than some
roundings of those: torch's may be right to the last digit by the luck of its order, ours by that of another.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cases import Case
from tests.test_against_torch import run as call
from tests.test_against_torch import to_double

# GPUs multiply fp32 in parts of TF32, which are multiples of 2^-136: an element is off by half of that.
TF32_HALF = 2.0**-137


def of_call(case: Case, arguments: tuple[Any, ...], dy: Tensor) -> tuple[Tensor, ...]:
    """Of every output and gradient."""
    return _of_batch_norm(case, arguments, dy) if case.op == "batch_norm" else _of_linear(case, arguments, dy)


def of_parts(case: Case, arguments: tuple[Any, ...], dy: Tensor) -> tuple[Tensor, ...]:
    """The errors that a convolution's outputs and gradients may have where x is off by TF32_HALF."""
    x, w, *rest = arguments
    ones = (torch.ones_like(x), w.abs(), *(r * 0 if isinstance(r, Tensor) else r for r in rest))
    return tuple(TF32_HALF * t for t in _of_linear(case, ones, dy))


def _of_linear(case: Case, arguments: tuple[Any, ...], dy: Tensor) -> tuple[Tensor, ...]:
    """The call with everything positive."""
    positive = tuple(a.abs() if isinstance(a, Tensor) and a.dtype.is_floating_point else a for a in arguments)
    outputs, grads = call(F, case, to_double(positive), dy.abs())
    return tuple(t.abs() for t in (*outputs, *grads))


def _of_batch_norm(case: Case, arguments: tuple[Any, ...], dy: Tensor) -> tuple[Tensor, ...]:
    """|x̂ · w| + |b| + |residual|, Σ |dz · x̂| and Σ |dz|; the other gradients are their own terms."""
    x, mean, var, *rest = to_double(arguments)
    options = {k: v for k, v in case.kwargs.items() if k in ("training", "eps")}
    copies = [t if t is None else t.clone() for t in (mean, var)]
    normal = F.batch_norm(x, *copies, **options)
    y = normal.abs()
    if rest and isinstance(rest[0], Tensor):
        shape = (1, -1, *[1] * (x.dim() - 2))
        y = y * rest[0].abs().view(shape) + rest[1].abs().view(shape)
    if case.composed and isinstance(rest[2], Tensor):
        y = y + rest[2].abs()
    wrt = case.differentiable(arguments)
    found = [y]
    for i in wrt:
        signed = dy.abs() * normal.sign() if i == 3 else dy.abs() if i == 4 else dy
        found.append(call(F, case, to_double(arguments), signed)[1][wrt.index(i)].abs())
    return tuple(found)
