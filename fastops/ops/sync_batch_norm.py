"""Batch normalisation over the batches of all processes of a group.

Each process finds count, mean and sum of squared deviations of its own part; these are gathered, and combined
in the order of the ranks (Chan, Golub and LeVeque 1979), the same way in every process. The backward's
two sums per channel are added up likewise. So all processes agree to the last bit, and with one that has the
whole batch to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastops.backends import launch
from fastops.ops import layout
from fastops.ops.batch_norm import BatchNormSpec, accumulator, batch_norm_params, contiguous, format_of


def _gathered(t: Tensor, group: Any) -> Tensor:
    """The processes' tensors, stacked in the order of their ranks."""
    parts = t.new_empty(dist.get_world_size(group), *t.shape)
    dist.all_gather(list(parts.unbind(0)), t, group=group)
    return parts


class _SumOverProcesses(torch.autograd.Function):
    """The sum of the processes' tensors, which each of them gets: its own transpose."""

    @staticmethod
    def forward(t: Tensor, group: Any) -> Tensor:
        return _gathered(t.contiguous(), group).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _SumOverProcesses.apply(dy, ctx.group), None


def statistics(x: Tensor, spec: BatchNormSpec) -> tuple[Tensor, Tensor]:
    """mean and 1 / sqrt(variance + spec.eps) of each channel, of a tensor with elements."""
    mean, invstd = (x.new_empty(x.shape[1], dtype=accumulator(x)) for _ in range(2))
    assert spec.memory_format is not None
    params = batch_norm_params(spec, x.shape, x.dtype)
    launch("batch_norm_stats", params, layout.dense(x, spec.memory_format), None, None, mean, invstd)
    return mean, invstd


def affine(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    residual: Tensor | None,
    spec: BatchNormSpec,
) -> Tensor:
    """(x − mean) · invstd · w + b + residual"""
    assert spec.memory_format is not None
    y = torch.empty_like(x, memory_format=spec.memory_format)
    if y.numel():
        params = batch_norm_params(spec, x.shape, x.dtype)
        x = layout.dense(x, spec.memory_format)
        launch("batch_norm_apply", params, x, contiguous(w), contiguous(b), mean, invstd, residual, y)
    return y


class SyncBatchNorm(torch.autograd.Function):
    """y = (x − mean) · invstd · w + b with the mean and variance of all processes' x; the running statistics,
    where given, are updated in place."""

    @staticmethod
    def forward(
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        param_dtype: torch.dtype,
        momentum: float,
        eps: float,
        group: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        spec = BatchNormSpec(True, 0.0, 0.0, False, param_dtype, format_of(x))
        own = x.new_zeros(3, x.shape[1], dtype=torch.float64)  # count, mean, Σ (x − mean)²
        if x.numel():
            own[0] = x.numel() // x.shape[1]
            own[1], invstd = statistics(x, spec)
            own[2] = own[0] / invstd.double().square()
        counts, means, squares = _gathered(own, group).unbind(1)
        total = counts.sum(0)
        count = total.clamp_min(1)
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        invstd = (variance + eps).rsqrt()
        if running_mean is not None and running_var is not None:
            weight = momentum * total.clamp_max(1)  # nothing is learnt from nothing; on the device, unseen
            unbiased = variance * (count / (count - 1).clamp_min(1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                running.lerp_(new.to(running.dtype), weight.to(running.dtype))
        mean, invstd = mean.to(accumulator(x)), invstd.to(accumulator(x))
        return affine(x, mean, invstd, w, b, None, spec), mean, invstd, count

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, b, _, _, ctx.param_dtype, _, ctx.eps, ctx.group = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, b, *output[1:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, w, b, mean, invstd, count = ctx.saved_tensors
        dy = torch.zeros_like(x) if dy is None else dy  # the other processes wait for this one's sums
        if torch.is_grad_enabled():
            return *_differentiable_backward(dy, x, w, b, ctx), *(None,) * 6
        want_x, want_w, want_b = ctx.needs_input_grad[:3]
        fixed = BatchNormSpec(False, 0.0, 0.0, False, ctx.param_dtype, format_of(x))
        dx = torch.empty_like(x, memory_format=fixed.memory_format)
        sums = x.new_zeros(2, x.shape[1], dtype=ctx.param_dtype)  # Σ dy · (x − mean) · invstd, Σ dy
        if x.numel():
            assert fixed.memory_format is not None
            params = batch_norm_params(fixed, x.shape, x.dtype)
            dense = (layout.dense(t, fixed.memory_format) for t in (dy, x))
            launch(
                *("batch_norm_backward", params, *dense, contiguous(w), None, mean, invstd, None),
                *(dx, sums[0], sums[1], None),
            )
        if want_x:
            # What the statistics' dependence on x adds is affine in x.
            means = -_gathered(sums.to(mean.dtype), ctx.group).sum(0) / count.to(mean.dtype)
            slopes = means * (invstd if w is None else invstd * w.to(mean.dtype))
            slopes = slopes.to(ctx.param_dtype)
            dx = affine(x, mean, invstd, slopes[0], slopes[1], dx, fixed)
        return dx if want_x else None, sums[0] if want_w else None, sums[1] if want_b else None, *(None,) * 6


def _differentiable_backward(
    dy: Tensor, x: Tensor, w: Tensor | None, b: Tensor | None, ctx: Any
) -> tuple[Tensor | None, ...]:
    """The gradients by torch's autograd, of the same function in torch's ops: for gradients of these."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    axes = [d for d in range(x.dim()) if d != 1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = ctx.saved_tensors[-1].to(wide.dtype)
    centred = wide - (_SumOverProcesses.apply(wide.sum(axes), ctx.group) / count).view(shape)
    variance = _SumOverProcesses.apply(centred.square().sum(axes), ctx.group) / count
    y = centred * (variance + ctx.eps).rsqrt().view(shape)
    y = y if w is None else y * w.view(shape)
    y = (y if b is None else y + b.view(shape)).to(x.dtype)
    inputs = [t for t, wanted in zip((x, w, b), ctx.needs_input_grad, strict=False) if wanted]
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
    return tuple(next(found) if wanted else None for wanted in ctx.needs_input_grad[:3])
