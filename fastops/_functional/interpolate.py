"""interpolate: arguments checked and normalised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fastops import arguments
from fastops._functional.avg_pool import adaptive_avg_pool2d
from fastops.arguments import hashable
from fastops.ops import interpolate as resize
from fastops.ops.autograd import call
from fastops.ops.library import cached
from fastops.ops.replay import replayed

INTERPOLATE_MODES = ("nearest", "nearest-exact", "bilinear", "bicubic", "area", "lanczos")


def _key(name: str, value: Any) -> Any:
    """A size or scale_factor as a key for the cache."""
    key = hashable(value)
    if isinstance(key, tuple) and not isinstance(value, (tuple, list)):
        wanted = "a number or a sequence of numbers"
        raise TypeError(f"interpolate(): argument '{name}' must be {wanted}, not {type(value).__name__}")
    return key


def _two(value: Any) -> tuple[Any, Any]:
    """(height, width) of an argument of interpolate."""
    return (value[0], value[1]) if isinstance(value, (list, tuple)) else (value, value)


def _factor(value: Any) -> float:
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # refused as such
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
    given = size if size is not None else scale_factor
    if isinstance(given, (list, tuple)) and len(given) != dim - 2:
        raise ValueError(
            f"interpolate: a {dim}-d input has {dim - 2} spatial dimensions, but got {len(given)} sizes or "
            f"factors: {given!r}"
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
        high, wide = _two(size)
        spatial = (
            arguments.integer("interpolate", "size", high),
            arguments.integer("interpolate", "size", wide),
        )
    else:
        high, wide = _two(scale_factor)
        scale = _factor(high), _factor(wide)
    # The area mode knows sizes only.
    recompute = bool(recompute_scale_factor) or mode == "area"
    return resize.InterpolateSpec(mode, spatial, scale, recompute, bool(align_corners), bool(antialias))


_cached_interpolate_spec = cached(typed=True)(_interpolate_spec)


def _exactly(kinds: tuple[type, ...], value: Any) -> bool:
    """Whether a value is None, of one of the types, or a tuple of those: equal ones mean the same."""
    if type(value) is tuple:
        return all(type(v) in kinds for v in value)
    return value is None or type(value) in kinds


@replayed(1)
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
    size, scale_factor = _key("size", size), _key("scale_factor", scale_factor)
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
