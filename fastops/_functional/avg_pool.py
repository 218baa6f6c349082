"""avg_pool2d and adaptive_avg_pool2d: arguments checked and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fastops import arguments
from fastops.arguments import IntPair, hashable
from fastops.ops import pool
from fastops.ops.autograd import call
from fastops.ops.library import cached
from fastops.ops.replay import replayed


@cached(typed=True)  # typed: 2.0 must not find the entry of 2
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
        if not -(2**63) <= divisor_override < 2**63:
            raise RuntimeError(
                f"avg_pool2d: divisor must fit 64 bits, got divisor_override={divisor_override}"
            )
    ceil = arguments.boolean(op, "ceil_mode", ceil_mode)
    include = arguments.boolean(op, "count_include_pad", count_include_pad)
    return pool.AvgPoolSpec(kernel, step, pad, ceil, include, divisor_override)


@replayed(1)
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
        hashable(kernel_size),
        hashable(stride),
        hashable(padding),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    x, added = arguments.batched("avg_pool2d", arguments.tensor("avg_pool2d", "input", input))
    y = call(pool.AvgPool, x, spec)
    return y.squeeze(0) if added else y


@replayed(1)
def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Average over the windows that divide the input into output_size; torch's function of that name.

    input: (N, C, H, W) or (C, H, W), floating point, contiguous or channels_last. output_size: one or
    two sizes; None keeps the input's. Returns (N, C, P, Q) or (C, P, Q) in the input's dtype and layout.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool2d, (input,), input, output_size)
    check_adaptive_rank("adaptive_avg_pool2d", input, output_size)
    x, added = arguments.batched(
        "adaptive_avg_pool2d", arguments.tensor("adaptive_avg_pool2d", "input", input)
    )
    y = call(pool.AvgPool, x, adaptive_spec("adaptive_avg_pool2d", x, output_size))
    return y.squeeze(0) if added else y


def check_adaptive_rank(op: str, input: Tensor, output_size: Any) -> None:
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


@cached(typed=True)
def _output_size(op: str, output_size: int | tuple[int | None, ...] | None) -> tuple[int | None, int | None]:
    sizes = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    checked = tuple(None if s is None else arguments.integer(op, "output_size", s) for s in sizes)
    if len(sizes) != 2:
        raise RuntimeError(f"{op}: output_size must be one or two sizes, got {output_size!r}")
    if any(s is not None and s < 0 for s in checked):
        raise RuntimeError(f"{op}: output_size must be non-negative, got {output_size!r}")
    if any(s is not None and s >= 2**62 for s in checked):
        raise RuntimeError(f"{op}: output_size {output_size!r} is more than can be counted")
    return checked  # type: ignore[return-value]


def adaptive_spec(op: str, x: Tensor, output_size: Any) -> pool.AdaptiveSpec:
    """The options of an adaptive pooling of x."""
    high, wide = _output_size(op, hashable(output_size))
    return pool.AdaptiveSpec((x.shape[2] if high is None else high, x.shape[3] if wide is None else wide))
