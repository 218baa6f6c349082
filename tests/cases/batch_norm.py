"""Batch normalisation: training and evaluation, and shapes that meet every way of cutting the work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G
from tests.cases import TORCH_VERSION, Case, Shape


def _running(x: Tensor, mean: Tensor, var: Tensor, *affine: Tensor, **_: Any) -> tuple[Any, ...]:
    return x, mean, var.abs() + 0.5, *affine


def _wide_parameters(*tensors: Tensor, **kwargs: Any) -> tuple[Any, ...]:
    """fp32 parameters and buffers beside a 16-bit x."""
    x, *rest = _running(*tensors, **kwargs)
    return x, *(t.float() if x.dtype.itemsize == 2 else t for t in rest)


def _batch_only(x: Tensor, *affine: Tensor, **_: Any) -> tuple[Any, ...]:
    return x, None, None, *affine


def _far_away(x: Tensor, *rest: Tensor, **kwargs: Any) -> tuple[Any, ...]:
    """A mean of 64 beside a deviation of 1/4: exact in 16 bits, hard on differences of moments."""
    return _running((x.clamp(-2, 2) * 0.25 + 64), *rest, **kwargs)


def _case(
    shape: Shape, options: dict[str, Any], reason: str, make: Any = _running, affine: bool = True, **more: Any
) -> Case:
    per_channel = ((shape[1],),) * ((0 if make is _batch_only else 2) + (2 if affine else 0))
    more.setdefault("wrt", (0, 3, 4) if affine else (0,))
    return Case("batch_norm", (shape, *per_channel), options, reason, make=make, **more)


def _composed(
    module: Any, x: Any, mean: Any, var: Any, w: Any, b: Any, residual: Any, activation: Any, **options: Any
) -> Any:
    """fastops' one call, or what it stands for."""
    if module is G:
        return G.batch_norm(x, mean, var, w, b, residual=residual, activation=activation, **options)
    y = module.batch_norm(x, mean, var, w, b, **options)
    if residual is not None:
        y = y + residual
    if activation == "relu":
        y = F.relu(y) if isinstance(y, Tensor) else np.maximum(y, 0)
    return y


def _fused(
    shape: Shape,
    options: dict[str, Any],
    reason: str,
    residual: bool = True,
    activation: str | None = "relu",
    affine: bool = True,
    wide: bool = False,
    **more: Any,
) -> Case:
    channels = (shape[1],)
    shapes = (shape, *(channels,) * (4 if affine else 2), *((shape,) if residual else ()))

    def make(x: Tensor, *rest: Tensor, **_: Any) -> tuple[Any, ...]:
        added = rest[-1] if residual else None
        parameters = (_wide_parameters if wide else _running)(x, *rest[: len(shapes) - 1 - residual])[1:]
        return x, *parameters, *(() if affine else (None, None)), added

    wrt = (0, *((3, 4) if affine else ()), *((5,) if residual else ()))
    more.setdefault("wrt", wrt)
    options = dict(options, activation=activation)
    return Case("batch_norm", shapes, options, reason, make=make, composed=_composed, **more)


NARROW = (torch.float32, torch.float16, torch.bfloat16)
TRAIN, EVAL = dict(training=True), dict(training=False)
BOTH = [
    ((2, 3, 5, 7), "three channels, odd planes: rows of channels are folded"),
    ((3, 1, 4, 5), "one channel: the two layouts coincide"),
    ((2, 5, 7, 11), "primes"),
    ((2, 8, 4, 4), "planes of whole vectors"),
    ((2, 19, 3, 3), "planes of a vector and one more; 19 channels fold by 16"),
    ((2, 64, 2, 2), "planes shorter than a vector"),
    ((4, 6, 1, 1), "one position: each row is a pixel"),
    ((7, 260, 1, 3), "too many channels to fold, and not whole vectors"),
    ((5, 6), "rank 2"),
    ((3, 4, 9), "rank 3"),
    ((2, 3, 2, 3, 4), "rank 5"),
    ((2, 2, 1, 2, 3, 2), "rank 6"),
]
LARGE = [
    ((2, 3, 71, 73), "planes of several pieces, the last one shorter"),
    ((40, 2, 17, 9), "planes in several groups, the last one smaller"),
    ((3, 64, 13, 21), "several blocks of rows, the last one short"),
    ((2, 19, 33, 31), "folded rows, of which the last is cut"),
    ((33, 272, 2, 1), "long rows in several blocks"),
    ((1, 1030, 3, 3), "more channels than one task combines"),
]
NO_EPS = (
    [_case((2, 3, 4, 4), dict(training=False, eps=0.0), "eps = 0 is legal in evaluation")]
    if TORCH_VERSION >= (2, 12)
    else []
)
CASES = (
    [_case(shape, mode, reason) for shape, reason in BOTH for mode in (TRAIN, EVAL)]
    + [_case(shape, mode, reason, large=True) for shape, reason in LARGE for mode in (TRAIN, EVAL)]
    + [_case((2, 3, 4, 5), mode, "without affine", affine=False) for mode in (TRAIN, EVAL)]
    + [
        _case((2, 3, 6, 4), mode, f"gradients for {wrt} only: less is saved and computed", wrt=wrt)
        for mode in (TRAIN, EVAL)
        for wrt in ((0,), (3,), (4,), (0, 4), (3, 4))
    ]
    + [
        _case((2, 5, 4, 5), mode, "fp32 parameters beside 16-bit x", make=_wide_parameters)
        for mode in (TRAIN, EVAL)
    ]
    + [
        # Not fp64, where the reference itself is no better.
        _case((2, 5, 4, 5), mode, "a mean far from 0", make=_far_away, dtypes=NARROW)
        for mode in (TRAIN, EVAL)
    ]
    + [
        _case((2, 3, 4, 4), dict(training=True, momentum=0.0), "running statistics stay"),
        _case((2, 3, 4, 4), dict(training=True, momentum=1.5), "a momentum above 1 is legal in torch"),
        _case((2, 3, 4, 4), dict(training=True, eps=0.5), "a large eps: x̂ has less than unit variance"),
        *NO_EPS,
        _case((2, 3, 4, 4), TRAIN, "no running statistics", make=_batch_only),
        _case((2, 3, 4, 4), TRAIN, "neither statistics nor affine", make=_batch_only, affine=False),
        _case((0, 3, 4, 4), EVAL, "an empty batch"),
        _case((0, 3, 4, 4), TRAIN, "an empty batch, from which nothing is learnt"),
        # wrt=(): gradcheck refuses the strides of an empty channels_last tensor.
        _case((2, 3, 0, 4), EVAL, "empty planes", wrt=()),
    ]
)
MODES = (TRAIN, EVAL)
CASES += (
    [_fused(shape, mode, reason) for shape, reason in BOTH for mode in MODES]
    + [_fused(shape, mode, reason, large=True) for shape, reason in LARGE for mode in MODES]
    + [
        _fused((2, 5, 7, 3), mode, "every part of what is fused", residual, activation, affine)
        for mode in MODES
        for residual, activation in ((True, None), (False, "relu"), (True, "relu"), (False, None))
        for affine in (True, False)
    ]
    + [
        _fused((2, 3, 6, 4), mode, f"gradients for {wrt} only", activation=activation, wrt=wrt)
        for mode in MODES
        for activation, wrt in (
            *(("relu", wrt) for wrt in ((0,), (3,), (4,), (5,), (0, 5), (4, 5), (3, 4))),
            (None, (5,)),
            (None, (0, 5)),
        )
    ]
    + [_fused((2, 5, 4, 5), mode, "fp32 parameters beside 16-bit x", wide=True) for mode in MODES]
    + [
        _fused((2, 3, 4, 4), dict(training=True, momentum=1.5, eps=0.5), "other options pass through"),
        _fused((0, 3, 4, 4), TRAIN, "an empty batch"),
        _fused((2, 3, 0, 4), EVAL, "empty planes", wrt=()),
    ]
)
