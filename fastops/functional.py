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
from torch.overrides import handle_torch_function, has_torch_function_unary

from fastops import arguments
from fastops.ops import interpolate as resize
from fastops.ops import pool
from fastops.ops.autograd import call

IntPair = int | Sequence[int]

# ---- convolution --------------------------------------------------------------------------------

# ---- average pooling ----------------------------------------------------------------------------


@lru_cache(maxsize=1024)
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


def _hashable(value: IntPair | None) -> IntPair | None:
    return tuple(value) if isinstance(value, list) else value


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
    x, added = arguments.batched(
        "adaptive_avg_pool2d", arguments.tensor("adaptive_avg_pool2d", "input", input)
    )
    y = call(pool.AvgPool, x, _adaptive_spec("adaptive_avg_pool2d", _hashable(output_size)))
    return y.squeeze(0) if added else y


@lru_cache(maxsize=1024)
def _adaptive_spec(op: str, output_size: int | tuple[int | None, ...] | None) -> pool.AdaptiveSpec:
    sizes = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    if len(sizes) != 2:
        raise RuntimeError(f"{op}: output_size must be one or two sizes, got {output_size!r}")
    checked = tuple(None if s is None else arguments.integer(op, "output_size", s) for s in sizes)
    if any(s is not None and s < 0 for s in checked):
        raise RuntimeError(f"{op}: output_size must be non-negative, got {output_size!r}")
    return pool.AdaptiveSpec(checked)  # type: ignore[arg-type]


# ---- max pooling and unpooling ------------------------------------------------------------------

# ---- batch norm ---------------------------------------------------------------------------------

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
