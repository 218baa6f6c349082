"""Batch normalisation: statistics, the affine map, its gradients, and the gradients of those.

The statistics are an op of their own, outside of autograd: ``BatchNorm`` takes mean and invstd as
constants, and its derivatives account for their dependence on x (``training=True``) in closed form.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastops import _C
from fastops.backends import DTYPES, launch
from fastops.ops import layout
from fastops.ops.autograd import call


class Plan(NamedTuple):
    """What one call needs: the kernels' params and the accumulator's dtype."""

    params: _C.BatchNormParams
    acc: torch.dtype


@lru_cache(maxsize=4096)
def batch_norm_plan(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    param_dtype: torch.dtype,
    channels_last: bool,
    training: bool,
    momentum: float = 0.0,
    eps: float = 0.0,
) -> Plan:
    spatial = (*(1,) * (5 - len(shape)), *shape[2:])
    if len(shape) > 5:
        spatial = (1, 1, math.prod(shape[2:]))
    params = _C.BatchNormParams(
        dtype=DTYPES[dtype],
        param_dtype=DTYPES[param_dtype],
        # One position: both layouts coincide, and rows of channels are the better way to see it.
        channels_last=channels_last or math.prod(spatial) == 1,
        n=shape[0],
        c=shape[1],
        in_=spatial,
        training=training,
        momentum=momentum,
        eps=eps,
    )
    return Plan(params, torch.float64 if dtype is torch.float64 else torch.float32)


def _format_of(x: Tensor) -> torch.memory_format:
    if x.dim() == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return layout.format_of(x)


def _plan(
    x: Tensor, param_dtype: torch.dtype, memory_format: torch.memory_format, training: bool, *stats: float
) -> Plan:
    channels_last = memory_format is not layout.CONTIGUOUS
    return batch_norm_plan(x.shape, x.dtype, param_dtype, channels_last, training, *stats)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else layout.dense(t, layout.CONTIGUOUS)


class BatchNormStats(torch.autograd.Function):
    """(mean, invstd) per channel, of x in training, of the running statistics in evaluation.

    In training the running statistics, where given, are updated in place. Not differentiable.
    """

    @staticmethod
    def forward(
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        param_dtype: torch.dtype,
        training: bool,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        memory_format = _format_of(x)
        plan = _plan(x, param_dtype, memory_format, training, momentum, eps)
        mean, invstd = x.new_empty((2, x.shape[1]), dtype=plan.acc).unbind()
        dense = [_contiguous(running_mean), _contiguous(running_var)]
        launch(
            "batch_norm_stats",
            plan.params,
            layout.dense(x, memory_format) if training else x,
            *dense,
            mean,
            invstd,
        )
        if training:
            for running, copy in zip((running_mean, running_var), dense, strict=True):
                if running is not copy:
                    running.copy_(copy)  # type: ignore[union-attr, arg-type]
                elif running is not None and not running.is_inference():
                    increment_version(running)  # whoever saved it for a backward pass must notice
        return mean, invstd

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> tuple[None, None]:
        return None, None  # constants to autograd: BatchNorm's derivative accounts for them


class BatchNorm(torch.autograd.Function):
    """y = (x − mean) · invstd · w + b; in training mean and invstd are those of x."""

    @staticmethod
    def forward(
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        param_dtype: torch.dtype,
        training: bool,
    ) -> Tensor:
        memory_format = _format_of(x)
        plan = _plan(x, param_dtype, memory_format, training)
        y = layout.empty_like(x, x.shape, memory_format)
        launch(
            "batch_norm_apply",
            plan.params,
            layout.dense(x, memory_format),
            _contiguous(w),
            _contiguous(b),
            mean,
            invstd,
            None,
            y,
        )
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, w, _, mean, invstd, ctx.param_dtype, ctx.training = inputs
        need_x, need_w = ctx.needs_input_grad[:2]
        ctx.memory_format = _format_of(x)
        # In evaluation dx does not depend on x.
        saved_x = x if need_w or (need_x and ctx.training) else None
        ctx.save_for_backward(saved_x, w if need_x else None, mean, invstd)
        ctx.save_for_forward(x, w, mean, invstd)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, invstd = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:3])
        gradients = call(
            BatchNormBackward,
            dy,
            x,
            w,
            mean,
            invstd,
            ctx.param_dtype,
            ctx.training,
            ctx.memory_format,
            wanted,
        )
        return *gradients, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None, *_: None) -> Tensor:
        x, w, mean, invstd = ctx.saved_tensors
        # The derivative wrt x is symmetric, so that backward's gradient wrt dy is the derivative of y.
        return call(
            BatchNormDoubleBackward,
            x_t,
            w_t,
            b_t,
            None,
            x,
            w,
            mean,
            invstd,
            ctx.param_dtype,
            ctx.training,
            ctx.memory_format,
            (True, False, False),
        )[0]


class BatchNormBackward(torch.autograd.Function):
    """(dx, dw, db), those wanted, else None."""

    @staticmethod
    def forward(
        dy: Tensor,
        x: Tensor | None,
        w: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        param_dtype: torch.dtype,
        training: bool,
        memory_format: torch.memory_format,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        plan = _plan(dy, param_dtype, memory_format, training)
        dx = layout.empty_like(dy, dy.shape, memory_format) if wanted[0] else None
        dw, db = (dy.new_empty(dy.shape[1], dtype=param_dtype) if want else None for want in wanted[1:])
        launch(
            "batch_norm_backward",
            plan.params,
            layout.dense(dy, memory_format),
            None if x is None else layout.dense(x, memory_format),
            _contiguous(w),
            None,
            mean,
            invstd,
            None,
            dx,
            dw,
            db,
            None,
        )
        return dx, dw, db

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, w, mean, invstd, ctx.param_dtype, ctx.training, ctx.memory_format, ctx.wanted = inputs
        ctx.save_for_backward(dy, x, w, mean, invstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, ddx: Tensor | None, ddw: Tensor | None, ddb: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        dy, x, w, mean, invstd = ctx.saved_tensors
        need_dy, need_x, need_w = ctx.needs_input_grad[:3]
        # What does not flow through these gradients is zero: None says so for less work.
        need_x &= (ctx.training and ddx is not None) or ddw is not None
        need_w &= ddx is not None
        need_dy &= any(t is not None for t in (ddx, ddw, ddb))
        gdy, gx, gw = call(
            BatchNormDoubleBackward,
            ddx,
            ddw,
            ddb,
            dy,
            x,
            w,
            mean,
            invstd,
            ctx.param_dtype,
            ctx.training,
            ctx.memory_format,
            (need_dy, need_x, need_w),
        )
        return gdy, gx, gw, None, None, None, None, None, None


class BatchNormDoubleBackward(torch.autograd.Function):
    """Gradients of BatchNormBackward wrt its (dy, x, w), those wanted, else None.

    The one for dy is also the derivative of BatchNorm along (ddx, ddw, ddb).
    """

    @staticmethod
    def forward(
        ddx: Tensor | None,
        ddw: Tensor | None,
        ddb: Tensor | None,
        dy: Tensor | None,
        x: Tensor | None,
        w: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        param_dtype: torch.dtype,
        training: bool,
        memory_format: torch.memory_format,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        like = next(t for t in (dy, x, ddx) if t is not None)
        plan = _plan(like, param_dtype, memory_format, training)
        gdy, gx = (
            layout.empty_like(like, like.shape, memory_format) if want else None for want in wanted[:2]
        )
        gw = like.new_empty(like.shape[1], dtype=param_dtype) if wanted[2] else None
        x, dy, ddx = (None if t is None else layout.dense(t, memory_format) for t in (x, dy, ddx))
        launch(
            "batch_norm_double_backward",
            plan.params,
            mean,
            invstd,
            _contiguous(w),
            x,
            dy,
            ddx,
            _contiguous(ddw),
            _contiguous(ddb),
            gx,
            gw,
            gdy,
        )
        return gdy, gx, gw

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        raise NotImplementedError("batch_norm: derivatives of third order are not implemented")


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    w: Tensor | None,
    b: Tensor | None,
    param_dtype: torch.dtype,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Normalises x; updates the running statistics, where given, in training. Arguments are checked."""
    if running_mean is None or not training:
        momentum = 0.0  # unused: one plan serves all
    with torch.no_grad():
        mean, invstd = call(
            BatchNormStats, x, running_mean, running_var, param_dtype, training, momentum, eps
        )
    return call(BatchNorm, x, w, b, mean, invstd, param_dtype, training)
