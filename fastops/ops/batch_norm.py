"""Batch normalisation with an optional residual and ReLU, its gradients, and the gradients of those.

``BatchNorm`` finds the statistics and applies them in one launch. It returns mean and invstd as constants:
its derivatives account for their dependence on x (``training=True``) in closed form. Its backward is one
launch too, unless it is itself differentiated: then it is that of the ReLU followed by that of the rest.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from fastops import _C, arguments
from fastops.backends import DTYPES, launch, recording
from fastops.ops import batching, given, layout
from fastops.ops.autograd import call, forward_mode_is_on, is_differentiated, written
from fastops.ops.library import is_plain, raw_op


class BatchNormSpec(NamedTuple):
    """Options of a batch normalisation. The layout is x's own (None: not looked at yet)."""

    training: bool
    momentum: float
    eps: float
    relu: bool
    param_dtype: torch.dtype
    memory_format: torch.memory_format | None


@lru_cache(maxsize=4096)
def batch_norm_params(spec: BatchNormSpec, shape: tuple[int, ...], dtype: torch.dtype) -> _C.BatchNormParams:
    spatial = (*(1,) * (5 - len(shape)), *shape[2:])
    if len(shape) > 5:
        spatial = (1, 1, math.prod(shape[2:]))
    return _C.BatchNormParams(
        dtype=DTYPES[dtype],
        param_dtype=DTYPES[spec.param_dtype],
        # One position: both layouts coincide, and rows of channels are the better way to see it.
        channels_last=spec.memory_format is not layout.CONTIGUOUS or math.prod(spatial) == 1,
        n=shape[0],
        c=shape[1],
        in_=spatial,
        training=spec.training,
        momentum=spec.momentum,
        eps=spec.eps,
        relu=spec.relu,
    )


_FORMATS = {torch.channels_last: 4, torch.channels_last_3d: 5}  # the rank of whose tensors


def check_tensors(
    op: str, spec: BatchNormSpec, like: Tensor, tensors: dict[str, Tensor | None], **parameters: Tensor | None
) -> None:
    """Raises unless the tensors are like the first one, the parameters have an element for each channel, and
    the layout is one of such tensors."""
    arguments.tensor(op, "input", like)
    arguments.same_dtype(op, input=like, **tensors)
    if like.dim() < 2:
        raise RuntimeError(f"{op}: expected (N, C, ...), got shape {tuple(like.shape)}")
    given.same_shape(op, like.shape, **tensors)
    given.vectors(op, like.shape[1], spec.param_dtype, **parameters)
    known = spec.memory_format in (None, layout.CONTIGUOUS)
    if not known and _FORMATS.get(spec.memory_format) != like.dim():
        raise ValueError(f"{op}: memory_format {spec.memory_format} is not of a tensor of rank {like.dim()}")


def check_backward(op: str, spec: BatchNormSpec, like: Tensor, mean: Tensor, invstd: Tensor) -> None:
    """Raises unless the statistics have an element for each channel, and the layout is said."""
    for name, t in (("mean", mean), ("invstd", invstd)):
        given.vectors(op, like.shape[1], accumulator(like), **{name: arguments.tensor(op, name, t)})
    if spec.memory_format is None:
        raise ValueError(f"{op}: memory_format should be given")


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype of mean and invstd."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def format_of(x: Tensor) -> torch.memory_format:
    """The layout of a tensor of any rank."""
    if x.dim() == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return layout.format_of(x)


def contiguous(t: Tensor | None) -> Tensor | None:
    """The tensor, dense, if there is one."""
    return None if t is None else layout.dense(t, layout.CONTIGUOUS)


def _dense_statistics(running: list[Tensor]) -> list[Tensor]:
    """What a kernel may update in place: the running statistics themselves, or copies of both."""
    dense = [layout.dense(t, layout.CONTIGUOUS) for t in running]
    if all(d is t for d, t in zip(dense, running, strict=True)):
        return dense
    return [t.clone(memory_format=layout.CONTIGUOUS) for t in running]


def _updated(running: list[Tensor], dense: list[Tensor]) -> None:
    """A kernel has written to the running statistics, or to dense copies of them."""
    current = recording()
    if current is not None:
        current.written += dense
        current.more |= running[0] is not dense[0]
    elif running[0] is not dense[0]:
        # Outside of inference mode torch would not copy to what was made in it; its own kernels write there.
        inference = any(t.is_inference() for t in running)
        with torch.inference_mode() if inference else nullcontext():
            torch._foreach_copy_(running, dense)  # one call: Ctrl-C must not come between the two
    else:
        for t in running:
            written(t)


def _normalised(
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    spec: BatchNormSpec,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, invstd); running statistics, which are dense, are updated in training."""
    memory_format = spec.memory_format
    assert memory_format is not None
    y = layout.empty_like(x, x.shape, memory_format)
    per_channel = (x.shape[1],), layout.CONTIGUOUS, accumulator(x)
    mean, invstd = layout.empty_like(x, *per_channel), layout.empty_like(x, *per_channel)
    launch(
        "batch_norm",
        batch_norm_params(spec, x.shape, x.dtype),
        layout.dense(x, memory_format),
        contiguous(w),
        contiguous(b),
        running_mean,
        running_var,
        None if residual is None else layout.dense(residual, memory_format),
        mean,
        invstd,
        y,
    )
    return y, mean, invstd


class _BatchNorm(torch.autograd.Function):
    """Derivatives of BatchNorm, for both its forms. Without a ReLU the backward keeps x and w, with one also
    b and the residual: where y is positive is computed again from them."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        x, w, b, residual, _, _, spec = inputs
        ctx.spec = _with_format(spec, x)
        mean, invstd = output[1:3]
        if len(output) == 3 or output[3] is None:
            ctx.mark_non_differentiable(mean, invstd)
        else:
            ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.residual_format = None if residual is None else format_of(residual)
        if forward_mode_is_on():
            ctx.save_for_forward(x, w, b, residual, mean, invstd)
        if spec.relu:
            ctx.save_for_backward(x, w, b, residual, mean, invstd)
            return
        need_x, need_w = ctx.needs_input_grad[:2]
        # In evaluation dx does not depend on x.
        saved_x = x if need_w or (need_x and spec.training) else None
        ctx.save_for_backward(saved_x, w if need_x else None, None, None, mean, invstd)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        x, w, b, residual, mean, invstd = ctx.saved_tensors
        want_x, want_w, want_b, want_residual = ctx.needs_input_grad[:4]
        spec = ctx.spec
        dx = dw = db = None
        dz: Tensor | None = dy
        if not is_differentiated(dy, x, w):
            wanted = want_x, want_w, want_b, want_residual and spec.relu
            dx, dw, db, dz = Backward.forward(dy, x, w, b, mean, invstd, residual, spec, wanted)
            if not spec.relu:
                dz = dy
        else:
            if spec.relu:
                dz = call(ActivationBackward, dy, x, w, b, mean, invstd, residual, spec)
            if want_x or want_w or want_b:
                wanted = want_x, want_w, want_b
                dx, dw, db = call(
                    BatchNormBackward, dz, x, w, mean, invstd, spec._replace(relu=False), wanted
                )
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
        spec = ctx.spec
        y_t = residual_t
        if residual_t is None or any(t is not None for t in (x_t, w_t, b_t)):
            # The derivative wrt x is symmetric, so that backward's gradient wrt dy is the derivative of y.
            y_t = call(
                BatchNormDoubleBackward,
                *(x_t, w_t, b_t, None, x, w, mean, invstd),
                spec._replace(relu=False),
                (True, False, False),
            )[0]
            y_t = y_t if residual_t is None else y_t + residual_t
        assert y_t is not None
        if spec.relu:
            y_t = call(ActivationBackward, y_t, x, w, b, mean, invstd, residual, spec)
        return y_t, None, None


class BatchNorm(_BatchNorm):
    """y = (x − mean) · invstd · w + b + residual, or its ReLU; and mean and invstd, per channel.

    In training mean and invstd are those of x, and the running statistics, where given, are updated in
    place; in evaluation they are the running ones.
    """

    @staticmethod
    def forward(
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        spec: BatchNormSpec,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not spec.training or running_mean is None or running_var is None:
            statistics = contiguous(running_mean), contiguous(running_var)
            return _normalised(x, w, b, residual, *statistics, spec)
        running = [running_mean, running_var]
        dense = _dense_statistics(running)
        results = _normalised(x, w, b, residual, *dense, spec)
        _updated(running, dense)
        return results

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        if args[-1].training and args[4] is not None and None in in_dims[4:6]:
            raise RuntimeError(
                "batch_norm: under vmap the running statistics, which are updated, must be mapped too"
            )
        results, _ = _vmap(NewBatchNorm, info, in_dims, args)
        for running, dim, new in zip(args[4:6], in_dims[4:6], results[3:], strict=True):
            if new is not None:
                running.movedim(dim, 0).copy_(new)
        return results[:3], (0, 0, 0)


@raw_op(
    "batch_norm(Tensor x, Tensor? w, Tensor? b, Tensor? residual, Tensor? running_mean, "
    "Tensor? running_var, OPTIONS) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    BatchNormSpec,
)
class NewBatchNorm(_BatchNorm):
    """BatchNorm that changes nothing: the new running statistics are results too, or None where there are
    none. What compilers are given."""

    @staticmethod
    def check(
        op: str,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        spec: BatchNormSpec,
    ) -> None:
        running = dict(running_mean=running_mean, running_var=running_var)
        check_tensors(op, spec, x, dict(residual=residual), w=w, b=b, **running)
        if (running_mean is None) != (running_var is None) or (running_mean is None and not spec.training):
            raise ValueError(f"{op}: running_mean and running_var belong together; evaluation needs them")

    @staticmethod
    def compute(
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        spec: BatchNormSpec,
    ) -> tuple[Tensor | None, ...]:
        statistics: tuple[Tensor | None, ...] = contiguous(running_mean), contiguous(running_var)
        updated = spec.training and running_mean is not None
        if updated:
            statistics = tuple(None if t is None else t.clone() for t in statistics)
        results = _normalised(x, w, b, residual, *statistics, _with_format(spec, x))
        return *results, *(statistics if updated else (None, None))

    @staticmethod
    def fake(
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        spec: BatchNormSpec,
    ) -> tuple[Tensor | None, ...]:
        memory_format = _with_format(spec, x).memory_format
        assert memory_format is not None
        y = layout.empty_like(x, x.shape, memory_format)
        mean, invstd = (x.new_empty(x.shape[1], dtype=accumulator(x)) for _ in range(2))
        updated = spec.training and running_mean is not None
        new = (
            torch.empty_like(t) if updated and t is not None else None for t in (running_mean, running_var)
        )
        return y, mean, invstd, *new

    @staticmethod
    def present(*args: Any) -> tuple[bool, ...]:
        updated = args[-1].training and args[4] is not None
        return True, True, True, updated, updated

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _BatchNorm.backward(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        return *_BatchNorm.jvp(ctx, *tangents), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _vmap(NewBatchNorm, info, in_dims, args)


def _with_format(spec: BatchNormSpec, x: Tensor) -> BatchNormSpec:
    return spec if spec.memory_format is not None else spec._replace(memory_format=format_of(x))


def _vmap(
    function: type[torch.autograd.Function], info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The rule for all Functions here: what is mapped becomes channels."""
    size = info.batch_size
    folded = list(args)
    for i, (t, dim) in enumerate(zip(args, in_dims, strict=True)):
        if isinstance(t, Tensor):
            is_vector = t.dim() == (1 if dim is None else 2)
            folded[i] = (batching.into_batch if is_vector else batching.into_channels)(t, dim, size)
        elif isinstance(t, BatchNormSpec):
            folded[i] = t._replace(memory_format=layout.CONTIGUOUS)
    results = call(function, *folded)

    def unfolded(t: Tensor | None) -> Tensor | None:
        return (batching.out_of_batch if t is None or t.dim() == 1 else batching.out_of_channels)(t, size)

    if isinstance(results, Tensor):
        return unfolded(results), 0
    return tuple(map(unfolded, results)), tuple(None if t is None else 0 for t in results)


@raw_op(
    "batch_norm_backward(Tensor dy, Tensor? x, Tensor? w, Tensor? b, Tensor mean, Tensor invstd, "
    "Tensor? residual, OPTIONS, bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    BatchNormSpec,
)
class Backward(torch.autograd.Function):
    """(dx, dw, db, dresidual), those wanted, else None, in one launch; not itself differentiable."""

    @staticmethod
    def check(
        op: str,
        dy: Tensor,
        x: Tensor | None,
        w: Tensor | None,
        b: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        residual: Tensor | None,
        spec: BatchNormSpec,
        wanted: tuple[bool, ...],
    ) -> None:
        check_tensors(op, spec, dy, dict(x=x, residual=residual), w=w, b=b)
        check_backward(op, spec, dy, mean, invstd)
        given.sizes(op, 4, wanted=wanted)

    @staticmethod
    def compute(
        dy: Tensor,
        x: Tensor | None,
        w: Tensor | None,
        b: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        residual: Tensor | None,
        spec: BatchNormSpec,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        memory_format = spec.memory_format
        assert memory_format is not None
        results = Backward.fake(dy, x, w, b, mean, invstd, residual, spec, wanted)
        if True in wanted:
            launch(
                "batch_norm_backward",
                batch_norm_params(spec, dy.shape, dy.dtype),
                layout.dense(dy, memory_format),
                None if x is None else layout.dense(x, memory_format),
                contiguous(w),
                contiguous(b),
                mean.contiguous(),
                invstd.contiguous(),
                None if residual is None else layout.dense(residual, memory_format),
                *results,
            )
        return results

    @staticmethod
    def fake(dy: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
        *_, spec, (want_x, want_w, want_b, want_residual) = args
        dx = torch.empty_like(dy, memory_format=spec.memory_format) if want_x else None
        dw = dy.new_empty(dy.shape[1], dtype=spec.param_dtype) if want_w else None
        db = dy.new_empty(dy.shape[1], dtype=spec.param_dtype) if want_b else None
        return dx, dw, db, torch.empty_like(dy, memory_format=spec.memory_format) if want_residual else None

    @staticmethod
    def present(*args: Any) -> tuple[bool, ...]:
        return tuple(args[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _vmap(Backward, info, in_dims, args)


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
        spec: BatchNormSpec,
    ) -> Tensor:
        wanted = False, False, False, True
        dz = Backward.forward(dy, x, w, b, mean, invstd, residual, spec, wanted)[3]
        assert dz is not None
        return dz

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _vmap(ActivationBackward, info, in_dims, args)

    dispatch = forward

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        *tensors, ctx.spec = inputs[1:]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return call(ActivationBackward, g, *ctx.saved_tensors, ctx.spec), *(None,) * 7

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor | None, *_: Any) -> Tensor:
        x = ctx.saved_tensors[0]
        if dy_t is None:
            return torch.zeros_like(x, memory_format=ctx.spec.memory_format)
        return call(ActivationBackward, dy_t, *ctx.saved_tensors, ctx.spec)


class BatchNormBackward(torch.autograd.Function):
    """(dx, dw, db), those wanted, else None, of a BatchNorm without ReLU; dy is also its dresidual."""

    @staticmethod
    def forward(
        dy: Tensor,
        x: Tensor | None,
        w: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        spec: BatchNormSpec,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return Backward.forward(dy, x, w, None, mean, invstd, None, spec, (*wanted, False))[:3]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _vmap(BatchNormBackward, info, in_dims, args)

    dispatch = forward

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, w, mean, invstd, ctx.spec, _ = inputs
        ctx.save_for_backward(dy, x, w, mean, invstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, ddx: Tensor | None, ddw: Tensor | None, ddb: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        dy, x, w, mean, invstd = ctx.saved_tensors
        need_dy, need_x, need_w = ctx.needs_input_grad[:3]
        # What does not flow through these gradients is zero: None says so for less work.
        need_x &= (ctx.spec.training and ddx is not None) or ddw is not None
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
            ctx.spec,
            (need_dy, need_x, need_w),
        )
        return gdy, gx, gw, None, None, None, None


@raw_op(
    "batch_norm_double_backward(Tensor? ddx, Tensor? ddw, Tensor? ddb, Tensor? dy, Tensor? x, Tensor? w, "
    "Tensor mean, Tensor invstd, OPTIONS, bool[3] wanted) -> (Tensor, Tensor, Tensor)",
    BatchNormSpec,
)
class BatchNormDoubleBackward(torch.autograd.Function):
    """Gradients of BatchNormBackward wrt its (dy, x, w), those wanted, else None.

    The one for dy is also the derivative of BatchNorm along (ddx, ddw, ddb).
    """

    @staticmethod
    def check(
        op: str,
        ddx: Tensor | None,
        ddw: Tensor | None,
        ddb: Tensor | None,
        dy: Tensor | None,
        x: Tensor | None,
        w: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        spec: BatchNormSpec,
        wanted: tuple[bool, ...],
    ) -> None:
        like = next((t for t in (dy, x, ddx) if t is not None), None)
        if like is None:
            raise ValueError(f"{op}: one of dy, x and ddx should be given")
        check_tensors(op, spec, like, dict(ddx=ddx, dy=dy, x=x), ddw=ddw, ddb=ddb, w=w)
        check_backward(op, spec, like, mean, invstd)
        given.sizes(op, 3, wanted=wanted)

    @staticmethod
    def compute(
        ddx: Tensor | None,
        ddw: Tensor | None,
        ddb: Tensor | None,
        dy: Tensor | None,
        x: Tensor | None,
        w: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        spec: BatchNormSpec,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        memory_format = spec.memory_format
        assert memory_format is not None
        gdy, gx, gw = BatchNormDoubleBackward.fake(
            *(ddx, ddw, ddb, dy, x, w, mean, invstd, spec, wanted),
        )
        like = next(t for t in (dy, x, ddx) if t is not None)
        x, dy, ddx = (None if t is None else layout.dense(t, memory_format) for t in (x, dy, ddx))
        launch(
            "batch_norm_double_backward",
            batch_norm_params(spec, like.shape, like.dtype),
            mean.contiguous(),
            invstd.contiguous(),
            contiguous(w),
            x,
            dy,
            ddx,
            contiguous(ddw),
            contiguous(ddb),
            gx,
            gw,
            gdy,
        )
        return gdy, gx, gw

    @staticmethod
    def fake(*args: Any) -> tuple[Tensor | None, ...]:
        ddx, _, _, dy, x, *_, spec, (want_dy, want_x, want_w) = args
        like = next(t for t in (dy, x, ddx) if t is not None)
        gdy, gx = (
            layout.empty_like(like, like.shape, spec.memory_format) if want else None
            for want in (want_dy, want_x)
        )
        return gdy, gx, like.new_empty(like.shape[1], dtype=spec.param_dtype) if want_w else None

    @staticmethod
    def present(*args: Any) -> tuple[bool, ...]:
        return tuple(args[-1])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _vmap(BatchNormDoubleBackward, info, in_dims, args)

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
        momentum = 0.0  # unused: one set of params serves all
    if is_plain(x):
        spec = BatchNormSpec(training, momentum, eps, relu, param_dtype, format_of(x))
        return call(BatchNorm, x, w, b, residual, running_mean, running_var, spec)[0]
    spec = BatchNormSpec(training, momentum, eps, relu, param_dtype, None)
    y, _, _, *new = call(NewBatchNorm, x, w, b, residual, running_mean, running_var, spec)
    if training and running_mean is not None and running_var is not None:
        running_mean.copy_(new[0])
        running_var.copy_(new[1])
    return y
