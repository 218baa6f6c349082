"""max_pool2d, adaptive_max_pool2d and max_unpool2d: arguments checked and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from fastops import arguments
from fastops._functional.avg_pool import adaptive_spec, check_adaptive_rank
from fastops.arguments import IntPair, hashable
from fastops.ops import max_pool
from fastops.ops.autograd import call
from fastops.ops.library import cached
from fastops.ops.replay import replayed


@cached(typed=True)
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
    return max_pool.MaxPoolSpec(kernel, step, pad, spacing, arguments.boolean(op, "ceil_mode", ceil_mode))


def _max_pool(x: Tensor, added: bool, spec: max_pool.Spec, return_indices: bool) -> Any:
    y, indices = max_pool.max_pool(x, spec, return_indices)
    if added:
        y = y.squeeze(0)
        indices = indices.squeeze(0) if return_indices else None
    return (y, indices) if return_indices else y


@replayed(1)
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
    counts; NaN is larger than everything, and of several the last counts. A dilated window that holds no
    element of the input gives −inf, at position −1.
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
        hashable(kernel_size), hashable(stride), hashable(padding), hashable(dilation), ceil_mode
    )
    x, added = arguments.batched("max_pool2d", arguments.tensor("max_pool2d", "input", input))
    return _max_pool(x, added, spec, bool(return_indices))


@replayed(1)
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


@replayed(1)
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
    op = "adaptive_max_pool2d"
    check_adaptive_rank(op, input, output_size)
    x, added = arguments.batched(op, arguments.tensor(op, "input", input))
    return _max_pool(x, added, adaptive_spec(op, x, output_size), bool(return_indices))


@replayed(1)
def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """``adaptive_max_pool2d`` with indices, whatever return_indices says, as in torch."""
    if has_torch_function_unary(input):
        return handle_torch_function(
            adaptive_max_pool2d_with_indices, (input,), input, output_size, return_indices=return_indices
        )
    return adaptive_max_pool2d(input, output_size, True)  # type: ignore[return-value]


@cached(typed=True)
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
        if not isinstance(output_size, tuple):
            raise TypeError(
                f"{op}(): argument 'output_size' must be a tuple, not {type(output_size).__name__}"
            )
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
    if chosen[0] < 0 or chosen[1] < 0:
        raise ValueError(f"max_unpool2d: output_size must be non-negative, but got {chosen}")
    if 0 in chosen:
        raise RuntimeError(f"{op}: the output would be {chosen}, with no element for indices to point at")
    arguments.allocatable(op, chosen)
    return chosen  # type: ignore[return-value]


@replayed(2)
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
    out of range, of another dtype or of another shape. On a GPU an index out of range is found while the
    kernel runs: its value is left out, and the next fastops call on that device raises (with
    CUDA_LAUNCH_BLOCKING=1 this one). The device goes on working.
    """
    if has_torch_function_variadic(input, indices):
        return handle_torch_function(
            max_unpool2d,
            (input, indices),
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
    arguments.dense(op, "indices", indices)
    size = _unpool_output_size(
        tuple(x.shape[2:]),
        hashable(kernel_size),
        hashable(stride),
        hashable(padding),
        hashable(output_size),  # type: ignore[arg-type]
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
    if arguments.autocasts(x.device.type) and x.dtype is not torch.float64:
        x = x.float()  # torch's autocast lists max_unpool2d among the ops that want fp32
    where = indices.contiguous().unsqueeze(0) if added else indices
    y = call(max_pool.MaxUnpool, x, where, size, None)
    return y.squeeze(0) if added else y
