"""torch.nn.functional's signatures, served by fastops' kernels.

Every function takes what torch's function of that name takes, returns the same values in the same
layout, and raises the same types of errors. Arguments are checked here; sizes are checked where the
op's plan is made (``fastops.ops``), once per shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from fastops import arguments
from fastops.ops import batch_norm as _batch_norm
from fastops.ops import conv, layout, max_pool, pool, shapes
from fastops.ops import interpolate as resize
from fastops.ops.autograd import call

IntPair = int | Sequence[int]


class _Unequal(tuple):  # type: ignore[type-arg]
    """A cache key that equals nothing but itself: (2.0, 2) must not find the entry of (2, 2)."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


def _hashable(value: IntPair | None) -> IntPair | None:
    if isinstance(value, (tuple, list)):
        exact = all(type(v) is int or v is None for v in value)
        return tuple(value) if exact else _Unequal(value)
    return value


# ---- convolution --------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _conv_spec(
    kernel: tuple[int, int], stride: IntPair, padding: IntPair | str, dilation: IntPair, groups: int
) -> tuple[conv.ConvSpec, tuple[int, int]]:
    """The options of a conv2d, and the padding of both sides together."""
    op = "conv2d"
    step = arguments.positive(op, "stride", arguments.pair(op, "stride", stride))
    spread = arguments.positive(op, "dilation", arguments.pair(op, "dilation", dilation))
    if isinstance(padding, str):
        if padding == "valid":
            before = both = (0, 0)
        elif padding == "same":
            if step != (1, 1):
                raise RuntimeError(
                    f"conv2d: padding='same' is not supported for strided convolutions, got stride={step}"
                )
            both = (spread[0] * (kernel[0] - 1), spread[1] * (kernel[1] - 1))
            before = (both[0] // 2, both[1] // 2)  # an odd rest goes to the end
        else:
            raise RuntimeError(f"conv2d: padding must be 'valid', 'same' or numbers, got {padding!r}")
    else:
        before = arguments.non_negative(op, "padding", arguments.pair(op, "padding", padding))
        both = (2 * before[0], 2 * before[1])
    return conv.ConvSpec(step, before, spread, groups), both


def _checked_conv(op: str, x: Tensor, w: Tensor, b: Tensor | None, groups: int, *, transposed: bool) -> None:
    """What conv2d and conv_transpose2d have in common."""
    arguments.same_device(op, input=x, weight=w, bias=b)
    arguments.same_dtype(op, input=x, weight=w, bias=b)
    if w.dim() != 4 or 0 in w.shape[2:]:
        raise RuntimeError(f"{op}: expected a 4-d weight with a non-empty kernel, got shape {tuple(w.shape)}")
    if groups <= 0:
        raise RuntimeError(f"{op}: groups must be positive, got {groups}")
    if w.shape[0] % groups != 0 or w.shape[0] == 0:
        raise RuntimeError(
            f"{op}: expected the weight's first dimension to be a positive multiple of groups={groups}, "
            f"got weight {tuple(w.shape)}"
        )
    grouped = (w.shape[0], w.shape[1] * groups)
    channels_in, channels_out = grouped if transposed else grouped[::-1]
    if x.shape[1] != channels_in:
        raise RuntimeError(
            f"{op}: given groups={groups} and weight of shape {tuple(w.shape)}, expected the input to have "
            f"{channels_in} channels, but got {x.shape[1]} (shape {tuple(x.shape)})"
        )
    if b is not None and tuple(b.shape) != (channels_out,):
        raise RuntimeError(
            f"{op}: given weight of shape {tuple(w.shape)}, expected bias to be 1-d with {channels_out} "
            f"elements, but got shape {tuple(b.shape)}"
        )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution; ``torch.nn.functional.conv2d``.

    input: (N, C, H, W) or (C, H, W). weight: (K, C / groups, R, S). bias: (K) or None. All of one
    floating-point dtype, contiguous or channels_last; sums are in fp32 (fp64 for fp64).
    padding: numbers, 'valid', or 'same' (stride 1).
    Returns (N, K, P, Q) or (K, P, Q), channels_last if input or weight is.
    Raises RuntimeError for shapes, dtypes or devices that do not fit, TypeError for arguments of the
    wrong type, NotImplementedError for a dtype or device without a kernel.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv2d, (input, weight, bias), input, weight, bias, stride, padding, dilation, groups
        )
    op = "conv2d"
    x, added = arguments.batched(op, arguments.tensor(op, "input", input))
    w = arguments.tensor(op, "weight", weight)
    b = None if bias is None else arguments.tensor(op, "bias", bias)
    x, w, b = arguments.autocast(x, w, b)
    groups = arguments.integer(op, "groups", groups)
    _checked_conv(op, x, w, b, groups, transposed=False)
    kernel = (w.shape[2], w.shape[3])
    spec, both = _conv_spec(kernel, _hashable(stride), _hashable(padding), _hashable(dilation), groups)
    shape = (x.shape[0], w.shape[0], *_conv_size(x.shape, kernel, spec, both))
    y = call(conv.Conv, x, w, b, spec, shape, conv.result_format(x, w))
    return y.squeeze(0) if added else y


@lru_cache(maxsize=4096)
def _conv_size(
    shape: tuple[int, ...], kernel: tuple[int, int], spec: conv.ConvSpec, padding: tuple[int, int]
) -> tuple[int, int]:
    size = tuple(
        shapes.conv_size(*axis)
        for axis in zip(shape[2:], kernel, spec.stride, padding, spec.dilation, strict=True)
    )
    if min(size) < 1:
        reach = tuple(d * (k - 1) + 1 for d, k in zip(spec.dilation, kernel, strict=True))
        raise RuntimeError(
            f"conv2d: the kernel, {reach} with its dilation, can't be greater than the input padded by "
            f"{padding} in all; input {tuple(shape)}"
        )
    return size  # type: ignore[return-value]


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    output_padding: IntPair = 0,
    groups: int = 1,
    dilation: IntPair = 1,
) -> Tensor:
    """Transposed convolution, the gradient of conv2d by its input; ``torch.nn.functional.conv_transpose2d``.

    input: (N, C, H, W) or (C, H, W). weight: (C, K / groups, R, S). bias: (K) or None. All of one
    floating-point dtype. Returns (N, K, P, Q) or (K, P, Q) with
    P = (H − 1) · stride − 2 · padding + dilation · (R − 1) + output_padding + 1.
    Errors as for conv2d.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv_transpose2d,
            (input, weight, bias),
            *(input, weight, bias, stride, padding, output_padding, groups, dilation),
        )
    op = "conv_transpose2d"
    x, added = arguments.batched(op, arguments.tensor(op, "input", input))
    w = arguments.tensor(op, "weight", weight)
    b = None if bias is None else arguments.tensor(op, "bias", bias)
    x, w, b = arguments.autocast(x, w, b)
    groups = arguments.integer(op, "groups", groups)
    _checked_conv(op, x, w, b, groups, transposed=True)
    spec, size = _conv_transpose_spec(
        x.shape,
        (w.shape[2], w.shape[3]),
        *map(_hashable, (stride, padding, output_padding, dilation)),
        groups,
    )
    shape = (x.shape[0], w.shape[1] * groups, *size)
    y = call(conv.ConvInputGrad, x, w, b, spec, shape, conv.result_format(x, w))
    return y.squeeze(0) if added else y


@lru_cache(maxsize=4096)
def _conv_transpose_spec(
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: IntPair,
    padding: IntPair,
    output_padding: IntPair,
    dilation: IntPair,
    groups: int,
) -> tuple[conv.ConvSpec, tuple[int, int]]:
    op = "conv_transpose2d"
    step = arguments.positive(op, "stride", arguments.pair(op, "stride", stride))
    spread = arguments.positive(op, "dilation", arguments.pair(op, "dilation", dilation))
    pad = arguments.non_negative(op, "padding", arguments.pair(op, "padding", padding))
    extra = arguments.non_negative(op, "output_padding", arguments.pair(op, "output_padding", output_padding))
    if any(e >= max(s, d) for e, s, d in zip(extra, step, spread, strict=True)):
        raise RuntimeError(
            f"conv_transpose2d: output_padding must be smaller than either stride or dilation, "
            f"got output_padding={extra}, stride={step}, dilation={spread}"
        )
    size = tuple(
        (i - 1) * s - 2 * p + d * (k - 1) + e + 1
        for i, s, p, d, k, e in zip(shape[2:], step, pad, spread, kernel, extra, strict=True)
    )
    if min(size) < 1 or 0 in shape[2:]:
        raise RuntimeError(
            f"conv_transpose2d: the output would be {size}, which is too small: input {tuple(shape)}, "
            f"kernel {kernel}, stride={step}, padding={pad}, output_padding={extra}, dilation={spread}"
        )
    return conv.ConvSpec(step, pad, spread, groups), size  # type: ignore[return-value]


# ---- average pooling ----------------------------------------------------------------------------


@lru_cache(maxsize=1024, typed=True)  # typed: 2.0 must not find the entry of 2
def _avg_pool_spec(
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> pool.AvgPoolSpec:
    op = "avg_pool2d"
    kernel = arguments.positive(op, "kernel_size", arguments.pair(op, "kernel_size", kernel_size))
    no_stride = stride is None or stride == ()
    step = kernel if no_stride else arguments.positive(op, "stride", arguments.pair(op, "stride", stride))
    pad = arguments.non_negative(op, "padding", arguments.pair(op, "padding", padding))
    if divisor_override is not None:
        divisor_override = arguments.integer(op, "divisor_override", divisor_override)
        if divisor_override == 0:
            raise RuntimeError("avg_pool2d: divisor must be not zero, got divisor_override=0")
    return pool.AvgPoolSpec(kernel, step, pad, bool(ceil_mode), bool(count_include_pad), divisor_override)


def avg_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average over windows; ``torch.nn.functional.avg_pool2d``.

    input: (N, C, H, W) or (C, H, W), floating point, contiguous or channels_last.
    Returns (N, C, P, Q) or (C, P, Q) in the input's dtype and layout. Sums are in fp32 (fp64 for fp64).
    Raises RuntimeError for sizes that make no sense, TypeError for arguments of the wrong type,
    NotImplementedError for a dtype or device without a kernel.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            avg_pool2d,
            (input,),
            input,
            kernel_size,
            stride,
            padding,
            ceil_mode,
            count_include_pad,
            divisor_override,
        )
    spec = _avg_pool_spec(
        _hashable(kernel_size),
        _hashable(stride),
        _hashable(padding),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    x, added = arguments.batched("avg_pool2d", arguments.tensor("avg_pool2d", "input", input))
    y = call(pool.AvgPool, x, spec)
    return y.squeeze(0) if added else y


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Average over the windows that divide the input into output_size; torch's function of that name.

    input: (N, C, H, W) or (C, H, W), floating point, contiguous or channels_last. output_size: one or
    two sizes; None keeps the input's. Returns (N, C, P, Q) or (C, P, Q) in the input's dtype and layout.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool2d, (input,), input, output_size)
    _check_adaptive_rank("adaptive_avg_pool2d", input, output_size)
    x, added = arguments.batched(
        "adaptive_avg_pool2d", arguments.tensor("adaptive_avg_pool2d", "input", input)
    )
    y = call(pool.AvgPool, x, _adaptive_spec("adaptive_avg_pool2d", _hashable(output_size)))
    return y.squeeze(0) if added else y


def _check_adaptive_rank(op: str, input: Tensor, output_size: Any) -> None:
    """torch looks at the rank first where output_size is a sequence, and then raises ValueError."""
    if (
        isinstance(output_size, (tuple, list))
        and isinstance(input, Tensor)
        and input.dim() <= len(output_size)
    ):
        raise ValueError(
            f"{op}: expected an input of {len(output_size) + 1} or more dimensions for "
            f"output_size={output_size}, got shape {tuple(input.shape)}"
        )


@lru_cache(maxsize=1024, typed=True)
def _adaptive_spec(op: str, output_size: int | tuple[int | None, ...] | None) -> pool.AdaptiveSpec:
    sizes = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    if len(sizes) != 2:
        raise RuntimeError(f"{op}: output_size must be one or two sizes, got {output_size!r}")
    checked = tuple(None if s is None else arguments.integer(op, "output_size", s) for s in sizes)
    if any(s is not None and s < 0 for s in checked):
        raise RuntimeError(f"{op}: output_size must be non-negative, got {output_size!r}")
    return pool.AdaptiveSpec(checked)  # type: ignore[arg-type]


# ---- max pooling and unpooling ------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _max_pool_spec(
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    dilation: IntPair,
    ceil_mode: bool,
) -> max_pool.MaxPoolSpec:
    op = "max_pool2d"
    kernel = arguments.positive(op, "kernel_size", arguments.pair(op, "kernel_size", kernel_size))
    no_stride = stride is None or stride == ()
    step = kernel if no_stride else arguments.positive(op, "stride", arguments.pair(op, "stride", stride))
    pad = arguments.non_negative(op, "padding", arguments.pair(op, "padding", padding))
    spacing = arguments.positive(op, "dilation", arguments.pair(op, "dilation", dilation))
    return max_pool.MaxPoolSpec(kernel, step, pad, spacing, bool(ceil_mode))


def _max_pool(op: str, input: Tensor, spec: max_pool.Spec, return_indices: bool) -> Any:
    x, added = arguments.batched(op, arguments.tensor(op, "input", input))
    y, indices = max_pool.max_pool(x, spec, return_indices)
    if added:
        y = y.squeeze(0)
        indices = indices.squeeze(0) if return_indices else None
    return (y, indices) if return_indices else y


def max_pool2d(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows; ``torch.nn.functional.max_pool2d``.

    input: (N, C, H, W) or (C, H, W), floating point, contiguous or channels_last.
    Returns (N, C, P, Q) or (C, P, Q) in the input's dtype and layout; with return_indices also the
    maxima's positions, flat in H·W, int64, in the same layout. Of equal maxima the first in raster order
    counts; NaN is larger than everything, and of several the last counts.
    Raises RuntimeError for sizes that make no sense, TypeError for arguments of the wrong type,
    NotImplementedError for a dtype or device without a kernel.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            max_pool2d,
            (input,),
            input,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            ceil_mode=ceil_mode,
            return_indices=return_indices,
        )
    spec = _max_pool_spec(
        _hashable(kernel_size), _hashable(stride), _hashable(padding), _hashable(dilation), ceil_mode
    )
    return _max_pool("max_pool2d", input, spec, bool(return_indices))


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """``max_pool2d`` with indices, whatever return_indices says, as in torch."""
    if has_torch_function_unary(input):
        return handle_torch_function(
            max_pool2d_with_indices,
            (input,),
            input,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            ceil_mode=ceil_mode,
            return_indices=return_indices,
        )
    return max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, True)  # type: ignore[return-value]


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over the windows that divide the input into output_size; torch's function of that name.

    input: (N, C, H, W) or (C, H, W), floating point, contiguous or channels_last. output_size: one or
    two sizes; None keeps the input's. Returns (N, C, P, Q) or (C, P, Q) in the input's dtype and layout;
    with return_indices also the maxima's positions, as ``max_pool2d`` does.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            adaptive_max_pool2d, (input,), input, output_size, return_indices=return_indices
        )
    spec = _adaptive_spec("adaptive_max_pool2d", _hashable(output_size))
    return _max_pool("adaptive_max_pool2d", input, spec, bool(return_indices))


def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """``adaptive_max_pool2d`` with indices, whatever return_indices says, as in torch."""
    if has_torch_function_unary(input):
        return handle_torch_function(
            adaptive_max_pool2d_with_indices, (input,), input, output_size, return_indices=return_indices
        )
    return adaptive_max_pool2d(input, output_size, True)  # type: ignore[return-value]


@lru_cache(maxsize=1024)
def _unpool_output_size(
    size: tuple[int, int],
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    output_size: Sequence[int] | None,
) -> tuple[int, int]:
    """The output's (height, width): the given one, if pooling it could have given `size`."""
    op = "max_unpool2d"
    kernel = arguments.pair(op, "kernel_size", kernel_size)
    step = kernel if stride is None else arguments.pair(op, "stride", stride)
    pad = arguments.pair(op, "padding", padding)
    default = tuple((i - 1) * s + k - 2 * p for i, k, s, p in zip(size, kernel, step, pad, strict=True))
    if output_size is None:
        chosen = default
    else:
        if len(output_size) not in (2, 4):
            raise ValueError(
                "max_unpool2d: output_size should have 2 or 4 elements (height and width last), but it has "
                f"{len(output_size)}: {tuple(output_size)}"
            )
        chosen = tuple(arguments.integer(op, "output_size", o) for o in output_size[-2:])
        for i in range(2):
            least, most = default[i] - step[i], default[i] + step[i]
            if not least < chosen[i] < most:
                raise ValueError(
                    f"max_unpool2d: invalid output_size {tuple(output_size)}: its "
                    f"{('height', 'width')[i]} must be between {least} and {most} (exclusive)"
                )
    if min(chosen) < 0:
        raise ValueError(f"max_unpool2d: output_size must be non-negative, but got {chosen}")
    return chosen  # type: ignore[return-value]


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Values put back where max pooling found them, among zeros; ``torch.nn.functional.max_unpool2d``.

    input: (N, C, P, Q) or (C, P, Q), floating point, contiguous or channels_last. indices: int64, of the
    same shape, flat in the output's H·W. output_size: (H, W), or a whole shape that ends in it.
    Returns (N, C, H, W) or (C, H, W) in the input's dtype and layout. Of equal indices the last in raster
    order wins, on any number of threads; the others' gradient is zero.
    Raises ValueError for an output_size that pooling could not have come from, RuntimeError for indices
    out of range, of another dtype or of another shape.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            max_unpool2d,
            (input,),
            input,
            indices,
            kernel_size,
            stride=stride,
            padding=padding,
            output_size=output_size,
        )
    op = "max_unpool2d"
    x, added = arguments.batched(op, arguments.tensor(op, "input", input))
    if not isinstance(indices, Tensor):
        raise TypeError(f"{op}(): argument 'indices' must be Tensor, not {type(indices).__name__}")
    size = _unpool_output_size(
        tuple(x.shape[2:]),
        _hashable(kernel_size),
        _hashable(stride),
        _hashable(padding),
        _hashable(output_size),  # type: ignore[arg-type]
    )
    if indices.dtype != torch.int64:
        raise RuntimeError(f"{op}: indices should have dtype int64, but got {indices.dtype}")
    if indices.shape != input.shape:
        raise RuntimeError(
            f"{op}: indices should have the input's shape {tuple(input.shape)}, "
            f"but got {tuple(indices.shape)}"
        )
    if indices.device != input.device:
        raise RuntimeError(f"{op}: input is on {input.device}, but indices are on {indices.device}")
    where = indices.contiguous().unsqueeze(0) if added else indices
    y = call(max_pool.MaxUnpool, x, where, size, layout.format_of(x))
    return y.squeeze(0) if added else y


# ---- batch norm ---------------------------------------------------------------------------------


def _batch_norm_parameter(op: str, name: str, t: Tensor | None, x: Tensor) -> None:
    """Checks one per-channel argument: a tensor with an element for each channel, on x's device."""
    if t is None:
        return
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}(): argument '{name}' must be Tensor, not {type(t).__name__}")
    if t.numel() != x.shape[1]:
        raise RuntimeError(f"{op}: {name} should contain {x.shape[1]} elements not {t.numel()}")
    if t.device != x.device:
        raise RuntimeError(f"{op}: {name} is on {t.device}, expected {x.device}, where the input is")


def _batch_norm_dtype(op: str, x: Tensor, named: dict[str, Tensor | None]) -> torch.dtype:
    """The one dtype of the parameters and buffers: the input's, or float32 beside a 16-bit input."""
    given = {name: t.dtype for name, t in named.items() if t is not None}
    dtype = next(iter(given.values()), x.dtype)
    allowed = {x.dtype, torch.float32} if x.dtype.itemsize == 2 else {x.dtype}
    for name, d in given.items():
        if d not in allowed or d != dtype:
            expected = " or ".join(str(a) for a in sorted(allowed, key=str))
            raise RuntimeError(
                f"{op}: mixed dtypes: {name} has dtype {d}; with an input of {x.dtype}, weight, bias and "
                f"running statistics must all be {expected}, got {given}"
            )
    return dtype


def _check_running_statistics(op: str, name: str, t: Tensor | None) -> None:
    if t is None:
        return
    if t.requires_grad:
        raise RuntimeError(f"{op}: not differentiable wrt {name}, which cannot have requires_grad True")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None:
        raise RuntimeError(f"{op}: not differentiable wrt {name}, which cannot carry a forward gradient")


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel by its mean and variance; ``torch.nn.functional.batch_norm``.

    input: (N, C, ...), floating point, any rank ≥ 2; contiguous or channels_last. weight, bias,
    running_mean, running_var: (C,), all of the input's dtype, or float32 beside a 16-bit input.
    training: the statistics are the batch's, and the running ones, where given, are updated in place with
    weight ``momentum`` (and the unbiased variance); else the running ones are used.
    Returns a tensor like the input, in its layout. Statistics are in fp32 (fp64 for fp64) and centred, so
    a large mean costs no digits. Gradients up to the second order, in reverse and forward mode.
    Raises ValueError for one value per channel or eps ≤ 0 in training, and for one running statistic
    without the other; RuntimeError for evaluation without running statistics, and for arguments whose
    size, dtype or device does not fit. Nothing is updated when it raises.
    """
    tensors = (input, running_mean, running_var, weight, bias)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            batch_norm, tensors, *tensors, training=training, momentum=momentum, eps=eps
        )
    op = "batch_norm"
    x = arguments.tensor(op, "input", input)
    if not isinstance(training, bool):
        raise TypeError(f"{op}(): argument 'training' must be bool, not {type(training).__name__}")
    if x.dim() == 1 and x.numel() == 0:  # legal in torch: no batch, no channels
        return batch_norm(
            x.view(0, 0), running_mean, running_var, weight, bias, training, momentum, eps
        ).view(0)
    if x.dim() < 2:
        raise (IndexError if training and x.dim() == 0 else RuntimeError)(
            f"{op}: expected an input of shape (N, C, ...), got {tuple(x.shape)}"
        )
    if training:
        # One value per channel, as torch counts: an empty batch is let through.
        if x.numel() == x.shape[1] and x.shape[0] == 1 and x.shape[2:].numel() == 1:
            raise ValueError(
                f"{op}: expected more than 1 value per channel when training, got input size {tuple(x.shape)}"
            )
        if eps <= 0.0:
            raise ValueError(f"{op}: eps must be positive during training, but got {eps}")
    elif eps < 0.0:
        raise ValueError(f"{op}: eps must be non-negative, but got {eps}")
    try:
        momentum, eps = float(momentum), float(eps)
    except TypeError:
        raise TypeError(
            f"{op}(): arguments 'momentum' and 'eps' must be float, got {momentum!r} and {eps!r}"
        ) from None
    for name, t in (("running_mean", running_mean), ("running_var", running_var)):
        if t is None and not training:
            raise RuntimeError(f"{op}: {name} must be defined in evaluation mode")
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{op}: running_mean and running_var must either both be None or neither be None")
    named = dict(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    for name, t in named.items():
        _batch_norm_parameter(op, name, t, x)
    dtype = _batch_norm_dtype(op, x, named)
    _check_running_statistics(op, "running_mean", running_mean)
    _check_running_statistics(op, "running_var", running_var)
    return _batch_norm.batch_norm(x, running_mean, running_var, weight, bias, dtype, training, momentum, eps)


# ---- interpolation ------------------------------------------------------------------------------

INTERPOLATE_MODES = ("nearest", "nearest-exact", "bilinear", "bicubic", "area", "lanczos")


def _two(name: str, value: Any) -> tuple[Any, Any]:
    """(height, width) of an argument of interpolate."""
    if not isinstance(value, (list, tuple)):
        return value, value
    if len(value) != 2:
        raise ValueError(
            f"interpolate: {name} must be one number, or two for the height and width of an (N, C, H, W) "
            f"input; got {value!r}"
        )
    return value[0], value[1]


def _factor(value: Any) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    raise TypeError(f"interpolate(): argument 'scale_factor' must be float, not {type(value).__name__}")


def _interpolate_spec(
    size: Any,
    scale_factor: Any,
    mode: str,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
    dim: int,
) -> resize.InterpolateSpec:
    """The options of a call with a dim-d input, checked."""
    weighted = mode not in ("nearest", "area", "nearest-exact")
    if not weighted and align_corners is not None:
        raise ValueError(
            f"interpolate: align_corners can only be set with bilinear and bicubic, got mode={mode!r}"
        )
    if size is not None and scale_factor is not None:
        raise ValueError("interpolate: only one of size or scale_factor should be defined")
    if size is None and scale_factor is None:
        raise ValueError("interpolate: either size or scale_factor should be defined")
    if size is not None and recompute_scale_factor:
        raise ValueError("interpolate: recompute_scale_factor is not meaningful with an explicit size")
    if antialias and not (mode in ("bilinear", "bicubic", "lanczos") and dim == 4):
        raise ValueError(
            "interpolate: antialias is restricted to the modes bilinear, bicubic and lanczos and to 4-d "
            f"inputs, got mode={mode!r} and a {dim}-d input"
        )
    if mode not in INTERPOLATE_MODES or dim != 4:
        raise NotImplementedError(
            f"interpolate: got a {dim}-d input and mode={mode!r}; supported are 4-d (N, C, H, W) "
            f"inputs in the modes {', '.join(INTERPOLATE_MODES)}"
        )
    if weighted and align_corners is not None and not isinstance(align_corners, bool):
        raise TypeError(
            f"interpolate(): argument 'align_corners' must be bool, not {type(align_corners).__name__}"
        )
    if mode == "lanczos" and align_corners:
        raise ValueError("interpolate: lanczos does not support align_corners=True")
    if mode == "lanczos" and not antialias:
        raise ValueError("interpolate: lanczos requires antialias=True")
    spatial = scale = None
    if size is not None:
        high, wide = _two("size", size)
        spatial = (
            arguments.integer("interpolate", "size", high),
            arguments.integer("interpolate", "size", wide),
        )
    else:
        high, wide = _two("scale_factor", scale_factor)
        scale = _factor(high), _factor(wide)
    # The area mode knows sizes only.
    recompute = bool(recompute_scale_factor) or mode == "area"
    return resize.InterpolateSpec(mode, spatial, scale, recompute, bool(align_corners), bool(antialias))


_cached_interpolate_spec = lru_cache(maxsize=1024)(_interpolate_spec)


def _exactly(kinds: tuple[type, ...], value: Any) -> bool:
    """Whether a value is None, of one of the types, or a tuple of those: equal ones mean the same."""
    if type(value) is tuple:
        return all(type(v) in kinds for v in value)
    return value is None or type(value) in kinds


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resizes images; ``torch.nn.functional.interpolate`` for 4-d inputs.

    input: (N, C, H, W), floating point, or uint8 in all modes but area; contiguous or channels_last.
    mode: nearest, nearest-exact, bilinear, bicubic, area, or lanczos. Antialiasing also serves float16
    and bfloat16, which torch's does not. A scale_factor is what coordinates are computed with, unless
    recompute_scale_factor is set. Returns (N, C, P, Q) in the input's dtype and layout.
    Raises ValueError for arguments that do not go together, TypeError for wrong types, RuntimeError for
    sizes that make no sense, NotImplementedError for modes, ranks and dtypes without a kernel.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            interpolate,
            (input,),
            input,
            size=size,
            scale_factor=scale_factor,
            mode=mode,
            align_corners=align_corners,
            recompute_scale_factor=recompute_scale_factor,
            antialias=antialias,
        )
    if not isinstance(input, Tensor):
        raise TypeError(f"interpolate(): argument 'input' must be Tensor, not {type(input).__name__}")
    size, scale_factor = _hashable(size), _hashable(scale_factor)
    # Only plain numbers are remembered: 2.0 and True equal integers that they must not be taken for.
    plain = (
        _exactly((int,), size)
        and _exactly((int, float), scale_factor)
        and (align_corners is None or type(align_corners) is bool)
        and type(mode) is str
    )
    spec = (_cached_interpolate_spec if plain else _interpolate_spec)(
        size, scale_factor, mode, align_corners, bool(recompute_scale_factor), bool(antialias), input.dim()
    )
    if mode == "area":
        return adaptive_avg_pool2d(input, resize.output_size(spec, input.shape))
    x = arguments.tensor("interpolate", "input", input, (*arguments.FLOATING, torch.uint8))
    return call(resize.Interpolate, x, spec)
