"""Batch normalisation with an optional residual and ReLU, its gradients, and the gradients of those.

``BatchNorm`` finds the statistics and applies them in one launch. It returns mean and invstd as constants:
its derivatives account for their dependence on x (``training=True``) in closed form. Its backward is one
launch too, unless it is itself differentiated: then it is that of the ReLU followed by that of the rest.
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
from fastops.ops.autograd import call, forward_mode_is_on, is_differentiated


class Plan(NamedTuple):
    """What the calls on one kind of tensor need: the kernels' params, and what they say."""

    params: _C.BatchNormParams
    memory_format: torch.memory_format
    acc: torch.dtype  # of mean and invstd
    param_dtype: torch.dtype
    training: bool
    relu: bool


@lru_cache(maxsize=4096)
def batch_norm_plan(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    param_dtype: torch.dtype,
    training: bool,
    momentum: float = 0.0,
    eps: float = 0.0,
    relu: bool = False,
) -> Plan:
    spatial = (*(1,) * (5 - len(shape)), *shape[2:])
    if len(shape) > 5:
        spatial = (1, 1, math.prod(shape[2:]))
    params = _C.BatchNormParams(
        dtype=DTYPES[dtype],
        param_dtype=DTYPES[param_dtype],
        # One position: both layouts coincide, and rows of channels are the better way to see it.
        channels_last=memory_format is not layout.CONTIGUOUS or math.prod(spatial) == 1,
        n=shape[0],
        c=shape[1],
        in_=spatial,
        training=training,
        momentum=momentum,
        eps=eps,
        relu=relu,
    )
    acc = torch.float64 if dtype is torch.float64 else torch.float32
    return Plan(params, memory_format, acc, param_dtype, training, relu)


def _format_of(x: Tensor) -> torch.memory_format:
    if x.dim() == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return layout.format_of(x)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else layout.dense(t, layout.CONTIGUOUS)


def _updated(running: Tensor, dense: Tensor) -> None:
    """A kernel has written to a running statistic, or to a dense copy of it."""
    if running is not dense:
        running.copy_(dense)
    elif not running.is_inference():
        increment_version(running)  # whoever saved it for a backward pass must notice


class BatchNorm(torch.autograd.Function):
    """y = (x − mean) · invstd · w + b + residual, or its ReLU; and mean and invstd, per channel.

    In training mean and invstd are those of x, and the running statistics, where given, are updated in
    place; in evaluation they are the running ones. Without a ReLU the backward keeps x and w, with one
    also b and the residual: where y is positive is computed again from them.
    """

    @staticmethod
    def forward(
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        plan: Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:
        memory_format, channels = plan.memory_format, x.shape[1]
        y = torch.empty_like(x, memory_format=memory_format)
        mean, invstd = x.new_empty(channels, dtype=plan.acc), x.new_empty(channels, dtype=plan.acc)
        dense_mean, dense_var = _contiguous(running_mean), _contiguous(running_var)
        launch(
            "batch_norm",
            plan.params,
            layout.dense(x, memory_format),
            _contiguous(w),
            _contiguous(b),
            dense_mean,
            dense_var,
            None if residual is None else layout.dense(residual, memory_format),
            mean,
            invstd,
            y,
        )
        if plan.training and running_mean is not None:
            assert running_var is not None and dense_mean is not None and dense_var is not None
            _updated(running_mean, dense_mean)
            _updated(running_var, dense_var)
        return y, mean, invstd

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w, b, residual, _, _, ctx.plan = inputs
        _, mean, invstd = output
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        ctx.residual_format = None if residual is None else _format_of(residual)
        if forward_mode_is_on():
            ctx.save_for_forward(x, w, b, residual, mean, invstd)
        if ctx.plan.relu:
            ctx.save_for_backward(x, w, b, residual, mean, invstd)
            return
        need_x, need_w = ctx.needs_input_grad[:2]
        # In evaluation dx does not depend on x.
        saved_x = x if need_w or (need_x and ctx.plan.training) else None
        ctx.save_for_backward(saved_x, w if need_x else None, None, None, mean, invstd)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        x, w, b, residual, mean, invstd = ctx.saved_tensors
        want_x, want_w, want_b, want_residual = ctx.needs_input_grad[:4]
        plan = ctx.plan
        dx = dw = db = None
        dz: Tensor | None = dy
        if not is_differentiated(dy, x, w):
            wanted = want_x, want_w, want_b, want_residual and plan.relu
            dx, dw, db, dz = _backward(dy, x, w, b, mean, invstd, residual, plan, wanted)
            if not plan.relu:
                dz = dy
        else:
            if plan.relu:
                dz = call(ActivationBackward, dy, x, w, b, mean, invstd, residual, plan)
            if want_x or want_w or want_b:
                wanted = want_x, want_w, want_b
                dx, dw, db = call(BatchNormBackward, dz, x, w, mean, invstd, _without_relu(dy, plan), wanted)
        dresidual = layout.dense(dz, ctx.residual_format) if want_residual and dz is not None else None
        return dx, dw, db, dresidual, None, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        x_t: Tensor | None,
        w_t: Tensor | None,
        b_t: Tensor | None,
        residual_t: Tensor | None,
        *_: Any,
    ) -> tuple[Tensor, None, None]:
        x, w, b, residual, mean, invstd = ctx.saved_tensors
        plan = ctx.plan
        y_t = residual_t
        if residual_t is None or any(t is not None for t in (x_t, w_t, b_t)):
            # The derivative wrt x is symmetric, so that backward's gradient wrt dy is the derivative of y.
            y_t = call(
                BatchNormDoubleBackward,
                *(x_t, w_t, b_t, None, x, w, mean, invstd),
                _without_relu(x, plan),
                (True, False, False),
            )[0]
            y_t = y_t if residual_t is None else y_t + residual_t
        assert y_t is not None
        if plan.relu:
            y_t = call(ActivationBackward, y_t, x, w, b, mean, invstd, residual, plan)
        return y_t, None, None


def _without_relu(x: Tensor, plan: Plan) -> Plan:
    if not plan.relu:
        return plan
    return batch_norm_plan(x.shape, x.dtype, plan.memory_format, plan.param_dtype, plan.training)


def _backward(
    dy: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    b: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    residual: Tensor | None,
    plan: Plan,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dw, db, dresidual), those wanted, else None."""
    memory_format = plan.memory_format
    want_x, want_w, want_b, want_residual = wanted
    dx = torch.empty_like(dy, memory_format=memory_format) if want_x else None
    dw = dy.new_empty(dy.shape[1], dtype=plan.param_dtype) if want_w else None
    db = dy.new_empty(dy.shape[1], dtype=plan.param_dtype) if want_b else None
    dresidual = torch.empty_like(dy, memory_format=memory_format) if want_residual else None
    if True in wanted:
        launch(
            "batch_norm_backward",
            plan.params,
            layout.dense(dy, memory_format),
            None if x is None else layout.dense(x, memory_format),
            _contiguous(w),
            _contiguous(b),
            mean,
            invstd,
            None if residual is None else layout.dense(residual, memory_format),
            dx,
            dw,
            db,
            dresidual,
        )
    return dx, dw, db, dresidual


class ActivationBackward(torch.autograd.Function):
    """dy where y = relu(…) is not ≤ 0, else 0: linear in dy, and constant in everything else."""

    @staticmethod
    def forward(
        dy: Tensor,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        residual: Tensor | None,
        plan: Plan,
    ) -> Tensor:
        dz = _backward(dy, x, w, b, mean, invstd, residual, plan, (False, False, False, True))[3]
        assert dz is not None
        return dz

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        *tensors, ctx.plan = inputs[1:]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return call(ActivationBackward, g, *ctx.saved_tensors, ctx.plan), *(None,) * 7

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor | None, *_: Any) -> Tensor:
        x = ctx.saved_tensors[0]
        if dy_t is None:
            return torch.zeros_like(x, memory_format=ctx.plan.memory_format)
        return call(ActivationBackward, dy_t, *ctx.saved_tensors, ctx.plan)


class BatchNormBackward(torch.autograd.Function):
    """(dx, dw, db), those wanted, else None, of a BatchNorm without ReLU; dy is also its dresidual."""

    @staticmethod
    def forward(
        dy: Tensor,
        x: Tensor | None,
        w: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        plan: Plan,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return _backward(dy, x, w, None, mean, invstd, None, plan, (*wanted, False))[:3]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, w, mean, invstd, ctx.plan, _ = inputs
        ctx.save_for_backward(dy, x, w, mean, invstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, ddx: Tensor | None, ddw: Tensor | None, ddb: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        dy, x, w, mean, invstd = ctx.saved_tensors
        need_dy, need_x, need_w = ctx.needs_input_grad[:3]
        # What does not flow through these gradients is zero: None says so for less work.
        need_x &= (ctx.plan.training and ddx is not None) or ddw is not None
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
            ctx.plan,
            (need_dy, need_x, need_w),
        )
        return gdy, gx, gw, None, None, None, None


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
        plan: Plan,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        like = next(t for t in (dy, x, ddx) if t is not None)
        memory_format = plan.memory_format
        gdy, gx = (
            layout.empty_like(like, like.shape, memory_format) if want else None for want in wanted[:2]
        )
        gw = like.new_empty(like.shape[1], dtype=plan.param_dtype) if wanted[2] else None
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
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Normalises x; updates the running statistics, where given, in training. Arguments are checked."""
    if running_mean is None or not training:
        momentum = 0.0  # unused: one plan serves all
    plan = batch_norm_plan(x.shape, x.dtype, _format_of(x), param_dtype, training, momentum, eps, relu)
    return call(BatchNorm, x, w, b, residual, running_mean, running_var, plan)[0]
