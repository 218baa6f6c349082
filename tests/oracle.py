"""The ops once more: slow loops in fp64 over numpy arrays, written to be read, not to be run often.

Every function has the name and the arguments of torch.nn.functional's, takes numpy arrays (batched or
not) and returns one array, or a pair where indices are asked for. Running statistics are updated in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

Array = np.ndarray
Window = tuple[list[int], int]  # positions inside the input, and how many there are with the padding


def pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, (tuple, list)):
        return (value[0], value[-1])
    return (value, value)


def batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a function of an (N, C, H, W) array also take (C, H, W); max_unpool2d has two such arrays."""

    def wrapped(x: Array, *args: Any, **kwargs: Any) -> Any:
        if x.ndim == 4:
            return function(x, *args, **kwargs)
        args = tuple(a[None] if isinstance(a, np.ndarray) and a.dtype.kind == "i" else a for a in args)
        result = function(x[None], *args, **kwargs)
        return tuple(r[0] for r in result) if isinstance(result, tuple) else result[0]

    return wrapped


# ---- convolution --------------------------------------------------------------------------------


@batched
def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Array:
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    k, cg, r, s = weight.shape
    span = (dh * (r - 1) + 1, dw * (s - 1) + 1)
    if padding == "valid":
        padding = 0
    if padding == "same":  # an odd total has its extra zero at the end
        sides = [((e - 1) // 2, e - 1 - (e - 1) // 2) for e in span]
    else:
        sides = [(p, p) for p in pair(padding)]
    x = np.pad(x, [(0, 0), (0, 0), *sides])
    p_size, q_size = ((i - e) // t + 1 for i, e, t in zip(x.shape[2:], span, (sh, sw), strict=True))
    y = np.zeros((x.shape[0], k, p_size, q_size))
    for o, p, q in product(range(k), range(p_size), range(q_size)):
        c = o // (k // groups) * cg
        window = x[:, c : c + cg, p * sh : p * sh + span[0] : dh, q * sw : q * sw + span[1] : dw]
        y[:, o, p, q] = (window * weight[o]).sum((1, 2, 3)) + (0 if bias is None else bias[o])
    return y


@batched
def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Array:
    """Every input element adds its multiple of the filter to the output; then the padding is cut off."""
    (sh, sw), (dh, dw), (ph, pw), (oh, ow) = map(pair, (stride, dilation, padding, output_padding))
    n, c, h, w = x.shape
    _, kg, r, s = weight.shape
    span = (dh * (r - 1) + 1, dw * (s - 1) + 1)
    y = np.zeros((n, kg * groups, (h - 1) * sh + span[0] + oh, (w - 1) * sw + span[1] + ow))
    for i, a, b in product(range(c), range(h), range(w)):
        k = i // (c // groups) * kg
        window = y[:, k : k + kg, a * sh : a * sh + span[0] : dh, b * sw : b * sw + span[1] : dw]
        window += x[:, i, a, b].reshape(-1, 1, 1, 1) * weight[i]
    y = y[:, :, ph : y.shape[2] - ph, pw : y.shape[3] - pw]
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


# ---- pooling ------------------------------------------------------------------------------------


def windows(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> list[Window]:
    """The windows of a pooling along one axis."""
    steps = (size + 2 * padding - dilation * (kernel - 1) - 1) / stride
    count = (math.ceil(steps) if ceil else math.floor(steps)) + 1
    if ceil and (count - 1) * stride >= size + padding:
        count -= 1  # it would start in the right padding
    result = []
    for o in range(count):
        positions = [o * stride - padding + dilation * i for i in range(kernel)]
        positions = [p for p in positions if p < size + padding]
        result.append(([p for p in positions if 0 <= p < size], len(positions)))
    return result


def adaptive_windows(size: int, output: int | None) -> list[Window]:
    """The windows that divide an axis into ``output`` parts, overlapping where they must."""
    n = size if output is None else output
    bounds = [(o * size // n, -(-(o + 1) * size // n)) for o in range(n)]
    return [(list(range(a, b)), b - a) for a, b in bounds]


def average(x: Array, rows: list[Window], cols: list[Window], divisor: Callable[[int, int], int]) -> Array:
    """``divisor`` maps (positions inside the input, positions with padding) to what the sum is divided by."""
    y = np.zeros((*x.shape[:2], len(rows), len(cols)))
    for (p, (a, with_a)), (q, (b, with_b)) in product(enumerate(rows), enumerate(cols)):
        total = sum((x[:, :, i, j] for i, j in product(a, b)), np.zeros(x.shape[:2]))
        y[:, :, p, q] = total / divisor(len(a) * len(b), with_a * with_b)
    return y


def maximum(x: Array, rows: list[Window], cols: list[Window]) -> tuple[Array, Array]:
    """The maximum and its position in the flat plane: the first in raster order, but of NaNs the last."""
    y = np.zeros((*x.shape[:2], len(rows), len(cols)))
    positions = np.zeros(y.shape, np.int64)
    for n, c, (p, (a, _)), (q, (b, _)) in product(
        range(x.shape[0]), range(x.shape[1]), enumerate(rows), enumerate(cols)
    ):
        best, at = None, 0
        for i, j in product(a, b):
            value = x[n, c, i, j]
            if best is None or value > best or np.isnan(value):
                best, at = value, i * x.shape[3] + j
        y[n, c, p, q], positions[n, c, p, q] = best, at
    return y, positions


@batched
def avg_pool2d(
    x: Array,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    axes = zip(x.shape[2:], *map(pair, (kernel_size, stride or kernel_size, padding, 1)), strict=True)
    rows, cols = (windows(*axis, ceil_mode) for axis in axes)
    return average(
        x, rows, cols, lambda inside, padded: divisor_override or (padded if count_include_pad else inside)
    )


@batched
def adaptive_avg_pool2d(x: Array, output_size: Any) -> Array:
    rows, cols = map(adaptive_windows, x.shape[2:], pair(output_size))
    return average(x, rows, cols, lambda inside, _: inside)


@batched
def max_pool2d(
    x: Array,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    axes = zip(x.shape[2:], *map(pair, (kernel_size, stride or kernel_size, padding, dilation)), strict=True)
    rows, cols = (windows(*axis, ceil_mode) for axis in axes)
    y, positions = maximum(x, rows, cols)
    return (y, positions) if return_indices else y


@batched
def adaptive_max_pool2d(x: Array, output_size: Any, return_indices: bool = False) -> Any:
    rows, cols = map(adaptive_windows, x.shape[2:], pair(output_size))
    y, positions = maximum(x, rows, cols)
    return (y, positions) if return_indices else y


@batched
def max_unpool2d(
    x: Array, indices: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Array:
    axes = zip(x.shape[2:], *map(pair, (kernel_size, stride or kernel_size, padding)), strict=True)
    h, w = ((i - 1) * s - 2 * p + k for i, k, s, p in axes) if output_size is None else output_size[-2:]
    y = np.zeros((*x.shape[:2], h * w))
    for n, c, p, q in np.ndindex(x.shape):
        y[n, c, indices[n, c, p, q]] = x[n, c, p, q]  # of duplicates the last one stays
    return y.reshape(*x.shape[:2], h, w)


# ---- batch norm ---------------------------------------------------------------------------------


def batch_norm(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
    y = np.zeros(x.shape)
    for c in range(x.shape[1]):
        values = x[:, c].ravel()
        if training:
            if not values.size:
                continue  # nothing was observed
            mean = values.sum() / values.size
            squares = ((values - mean) ** 2).sum()
            var = squares / values.size
            if running_mean is not None:
                running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean
            if running_var is not None:
                running_var[c] = (1 - momentum) * running_var[c] + momentum * squares / (values.size - 1)
        else:
            mean, var = running_mean[c], running_var[c]
        y[:, c] = (x[:, c] - mean) / math.sqrt(var + eps)
        if weight is not None:
            y[:, c] *= weight[c]
        if bias is not None:
            y[:, c] += bias[c]
    return y


# ---- interpolation ------------------------------------------------------------------------------


def cubic(t: float, a: float) -> float:
    """Keys' cubic kernel."""
    t = abs(t)
    if t < 1:
        return ((a + 2) * t - (a + 3)) * t * t + 1
    return (((t - 5) * t + 8) * t - 4) * a if t < 2 else 0.0


FILTERS: dict[str, tuple[int, Callable[[float], float]]] = {  # of antialiasing: half width, kernel
    "bilinear": (1, lambda t: max(0.0, 1 - abs(t))),
    "bicubic": (2, lambda t: cubic(t, -0.5)),
    "lanczos": (3, lambda t: float(np.sinc(t) * np.sinc(t / 3)) if abs(t) < 3 else 0.0),
}


def taps(size: int, out: int, scale: float | None, mode: str, corners: bool, antialias: bool) -> Array:
    """One axis of an interpolation as an (out, size) matrix."""
    if corners:
        ratio = (size - 1) / (out - 1) if out > 1 else 0.0
    else:
        ratio = 1 / scale if scale is not None else size / out
    matrix = np.zeros((out, size))
    for o in range(out):
        if antialias:
            half, kernel = FILTERS[mode]
            center, stretch = ratio * (o + 0.5), max(ratio, 1.0)
            first = max(0, int(center - half * stretch + 0.5))
            last = min(size, int(center + half * stretch + 0.5))
            weights = [kernel((i - center + 0.5) / stretch) for i in range(first, last)]
            matrix[o, first:last] = np.array(weights) / sum(weights)
        elif mode == "nearest" and out in (size, 2 * size):  # whatever the scale was that led to this size
            matrix[o, o * size // out] = 1
        elif mode in ("nearest", "nearest-exact"):  # torch has these coordinates in fp32 for every dtype
            at = np.float32(o + (0.5 if mode == "nearest-exact" else 0.0)) * np.float32(ratio)
            matrix[o, min(size - 1, int(at))] = 1
        else:
            at = o * ratio if corners else (o + 0.5) * ratio - 0.5
            if mode == "bilinear":
                at = max(at, 0.0)
            i = math.floor(at)
            for j in range(i - 1, i + 3):
                weight = max(0.0, 1 - abs(at - j)) if mode == "bilinear" else cubic(at - j, -0.75)
                matrix[o, min(max(j, 0), size - 1)] += weight
    return matrix


def interpolate(
    x: Array,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Array:
    scales = pair(scale_factor)
    if size is None:
        size = tuple(math.floor(i * s) for i, s in zip(x.shape[2:], scales, strict=True))
    if mode == "area":
        return adaptive_avg_pool2d(x, size)
    if recompute_scale_factor:
        scales = (None, None)
    sizes = zip(x.shape[2:], pair(size), scales, strict=True)
    # Along an axis whose size stays torch copies, whatever the factor.
    copies = mode == "bilinear" or antialias
    rows, cols = (
        taps(i, o, None if copies and i == o else scale, mode, bool(align_corners), antialias)
        for i, o, scale in sizes
    )
    return rows @ x @ cols.T


def upsample_nearest(x: Array, size: Any = None, scale_factor: Any = None) -> Array:
    return interpolate(x, size, scale_factor)


def upsample_bilinear(x: Array, size: Any = None, scale_factor: Any = None) -> Array:
    return interpolate(x, size, scale_factor, "bilinear", align_corners=True)
