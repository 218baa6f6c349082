"""How close is close enough: relative to torch's own error at the same dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def max_error(value: Tensor, reference: Tensor) -> float:
    """Largest difference; equal infinities and NaNs in the same places count as equal."""
    if value.numel() == 0:
        return 0.0
    difference = (value.double() - reference).abs()
    same = (value.double() == reference) | (value.isnan() & reference.isnan())
    return difference.masked_fill(same, 0).max().item()


def largest(t: Tensor) -> float:
    """The largest magnitude that is finite."""
    finite = t[t.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def rounding_floor(reference: Tensor, dtype: torch.dtype) -> float:
    """Two units in the last place of the largest value: where torch happens to round every value right, one
    rounding more must not fail. In fp64 torch's own result is the reference, so that its error is 0: the
    floor there allows for sums in another order. The last place of subnormals is the smallest one.
    """
    units, info = 64 if dtype is torch.float64 else 2, torch.finfo(dtype)
    return units * max(info.eps * largest(reference), info.smallest_normal * info.eps)


ROUNDINGS = 8  # of the terms of a sum


def floor_with_terms(reference: Tensor, dtype: torch.dtype, terms: Tensor | None) -> float:
    """The rounding floor and, where it is known how large the terms are that the results are sums of, some
    roundings of them, in the precision of the sum."""
    floor = rounding_floor(reference, dtype)
    if terms is not None:
        precision = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32)
        floor += ROUNDINGS * precision.eps * largest(terms) + torch.finfo(dtype).tiny
    return floor


def terms_of_affine(normal: Tensor, dy: Tensor) -> list[Tensor]:
    """How large the terms are of batch norm's gradients of weight and bias, Σ |dy · x̂| and Σ |dy|."""
    dims = [d for d in range(dy.dim()) if d != 1]
    return [t.abs().sum(dims) for t in (dy * normal, dy)]


def error_ratio(ours: Tensor, theirs: Tensor, reference: Tensor, terms: Tensor | None = None) -> float:
    """Our error ÷ (torch's error + half the rounding floor); above 2 it is too large."""
    error, torch_error = max_error(ours, reference), max_error(theirs, reference)
    return error / (torch_error + floor_with_terms(reference, ours.dtype, terms) / 2)


def assert_accurate(
    ours: Tensor, theirs: Tensor, reference: Tensor, what: str = "", terms: Tensor | None = None
) -> float:
    """Error against the fp64 reference ≤ 2 × torch's error at this dtype, plus the rounding floor; returns
    the error as a part of that.

    terms: how large the terms are that the results are sums of, for cases that nobody has chosen: there a
    result may be much smaller than they, and torch's right to the last digit by luck.
    """
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, torch has {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"{what}: dtype {ours.dtype}, torch has {theirs.dtype}"
    error, torch_error = max_error(ours, reference), max_error(theirs, reference)
    if math.isnan(
        torch_error
    ):  # 2.13's transposed convolution in bf16 has one in its weight gradient, at times
        torch_error = 0.0
    floor = floor_with_terms(reference, ours.dtype, terms)
    allowed = 2 * torch_error + floor
    assert error <= allowed, f"{what}: error {error:.3e}, torch's {torch_error:.3e}, floor {floor:.3e}"
    return error / allowed if 0 < error < math.inf else 0.0


def assert_same_layout(ours: Tensor, theirs: Tensor) -> None:
    """Same strides, except where they say nothing: along dimensions of size 1, and in empty tensors."""
    if ours.numel() == 0:
        return
    relevant = [i for i, size in enumerate(ours.shape) if size > 1]
    assert [ours.stride(i) for i in relevant] == [theirs.stride(i) for i in relevant], (
        f"strides {ours.stride()}, expected {theirs.stride()}, shape {tuple(ours.shape)}"
    )
