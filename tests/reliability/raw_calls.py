"""Random calls of the launchers in fastops._C that their contracts (csrc/validate.h) allow: params, and how
much memory each tensor has. Without torch, so that the sanitizers see nothing but the kernels.

What a tensor's size is, is said here a second time, on purpose: a launcher that touches memory beyond is
wrong, or its checks are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "u8": 1}
FLOATING = ("f64", "f32", "f16", "bf16")
INDEX_BYTES = {"i64": 8, "i32": 4, "u8": 1}
Fields = dict[str, Any]


@dataclass(frozen=True)
class Operand:
    """A tensor of a launcher."""

    name: str
    elements: Callable[[Fields], int]
    bytes: Callable[[Fields], int]  # of an element
    optional: bool = False
    positions: Callable[[Fields], int] | None = None  # contents are indices below this


@dataclass(frozen=True)
class Op:
    struct: str
    make: Callable[[random.Random], Fields]
    operands: tuple[Operand, ...]
    # Of the optional tensors that are given, whether that is a call that is allowed.
    allowed: Callable[[Fields, set[str]], bool] = lambda fields, given: True


# ---- sizes ---------------------------------------------------------------------------------------


def element(f: Fields, field: str = "dtype") -> int:
    return BYTES.get(f[field], 8)  # of an unknown type enough for any


def accumulator(f: Fields) -> int:
    return 8 if f["dtype"] == "f64" else 4


def x_size(f: Fields) -> int:
    return f["n"] * f["c"] * math.prod(f["in_"])


def y_size(f: Fields) -> int:
    return f["n"] * f.get("k", f["c"]) * math.prod(f["out"])


def w_size(f: Fields) -> int:
    return f["k"] * (f["c"] // f["groups"]) * math.prod(f["kernel"]) if f["groups"] else 0


def tensor(name: str, elements: Callable[[Fields], int], optional: bool = False) -> Operand:
    return Operand(name, elements, element, optional)


def channels(name: str, field: str = "c", optional: bool = False) -> Operand:
    return Operand(name, lambda f: f[field], element, optional)


def indices(name: str, elements: Callable[[Fields], int], below: str, optional: bool = False) -> Operand:
    def size(f: Fields) -> int:
        return INDEX_BYTES.get(f.get("positions", "i64"), 8)

    return Operand(name, elements, size, optional, lambda f: math.prod(f[below]))


# ---- params --------------------------------------------------------------------------------------


def common(r: random.Random, dtypes: tuple[str, ...] = FLOATING) -> Fields:
    return {
        "dtype": r.choice(dtypes),
        "channels_last": r.random() < 0.5,
        "n": r.choice((0, 1, 1, 2, 3)),
        "c": r.choice((1, 1, 2, 3, 4, 7, 8, 16, 17, 33)),
    }


def size(r: random.Random) -> int:
    return r.choice((1, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 20))


def conv(r: random.Random) -> Fields:
    """A convolution; or the one whose gradient is a transposed convolution with output padding."""
    f = common(r)
    groups = r.choice((1, 1, 1, 2, 3, f["c"]))
    per_group = 1 if groups == f["c"] and r.random() < 0.7 else r.choice((1, 2, 3, 4, 8, 16, 32, 33))
    if groups > 4:
        per_group = min(per_group, 2)
    f |= {"groups": groups, "c": groups * per_group, "k": groups * r.choice((1, 1, 2, 3, 5, 16, 32, 40))}
    if groups > 4:
        f["k"] = groups * r.choice((1, 1, 2))
    axes = []
    transposed = r.random() < 0.3
    for _ in range(2):
        while True:
            kernel, stride, dilation = r.choice((1, 2, 3, 3, 3, 4, 7)), r.choice((1, 1, 1, 2, 3)), 1
            dilation = r.choice((1, 1, 2, 3))
            pad, in_ = r.choice((0, 0, 1, 2, 3)), size(r)
            if transposed:
                out = size(r)
                in_ = (out - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1
                in_ += r.randrange(max(stride, dilation))
            else:
                same = r.random() < 0.2 and stride == 1
                total = dilation * (kernel - 1) if same else 2 * pad
                pad = total // 2
                out = (in_ + total - dilation * (kernel - 1) - 1) // stride + 1
            if in_ > 0 and out > 0:
                break
        axes.append((in_, out, kernel, stride, pad, dilation))
    for name, pair, depth in zip(
        ("in_", "out", "kernel", "stride", "pad", "dilation"),
        zip(*axes, strict=True),
        (1, 1, 1, 1, 0, 1),
        strict=True,
    ):
        f[name] = (depth, *pair)
    return f | {"weight_channels_last": r.random() < 0.5, "relu": r.random() < 0.3}


def pool(r: random.Random, dilations: tuple[int, ...] = (1,)) -> Fields:
    f = common(r)
    if r.random() < 0.3:
        return f | {
            "adaptive": True,
            "in_": (1, size(r), size(r)),
            "out": (1, *(r.choice((0, 1, 2, 3, 5, 9, 20)) for _ in range(2))),
        }
    axes = []
    while len(axes) < 2:
        in_, kernel, stride, dilation = size(r), r.choice((1, 2, 2, 3, 3, 5, 9)), 1, r.choice(dilations)
        stride = r.choice((1, 2, 2, 3, kernel))
        pad = r.randint(0, (dilation * (kernel - 1) + 1) // 2)
        span = in_ + 2 * pad - dilation * (kernel - 1) - 1
        out = span // stride + 1
        if r.random() < 0.4:
            out = -(-span // stride) + 1
            out -= (out - 1) * stride >= in_ + pad
        if out > 0:
            axes.append((in_, out, kernel, stride, pad, dilation))
    names = ("in_", "out", "kernel", "stride", "pad", "dilation")
    for name, pair in zip(names, zip(*axes, strict=True), strict=True):
        f[name] = (0 if name == "pad" else 1, *pair)
    return f


def average(r: random.Random) -> Fields:
    return pool(r) | {
        "count_include_pad": r.random() < 0.5,
        "divisor_override": r.choice((0, 0, 3, -2, 2**63 - 1, -(2**63))),
    }


def maximum(r: random.Random) -> Fields:
    return pool(r, (1, 1, 2, 3)) | {"positions": r.choice(("i64", "i32"))}


def unpool(r: random.Random) -> Fields:
    return common(r) | {"in_": (1, size(r), size(r)), "out": (1, size(r), size(r))}


def norm(r: random.Random) -> Fields:
    f = common(r)
    sixteen_bits = f["dtype"] in ("f16", "bf16")
    return f | {
        "param_dtype": r.choice((f["dtype"], "f32")) if sixteen_bits else f["dtype"],
        "in_": (1, r.choice((0, size(r), size(r), 40)), size(r)),
        "training": r.random() < 0.6,
        "momentum": r.random(),
        "eps": 1e-5,
        "relu": r.random() < 0.5,
    }


def resize(r: random.Random, filters: tuple[str, ...], dtypes: tuple[str, ...] = FLOATING) -> Fields:
    f = common(r, dtypes) | {"in_": (1, size(r), size(r)), "out": (1, size(r), size(r))}
    if r.random() < 0.4:
        scales = tuple(r.choice((0.5, 0.7, 1.5, 2.0, 2.3)) for _ in range(2))
        out = tuple(int(i * s) for i, s in zip(f["in_"][1:], scales, strict=True))
        if min(out) > 0:
            f |= {"out": (1, *out), "scale": (0.0, *scales)}
    f["filter"] = r.choice(filters)
    if not f["filter"].startswith("nearest"):
        f |= {"align_corners": r.random() < 0.3, "antialias": r.random() < 0.4 or f["filter"] == "lanczos"}
    return f


NEAREST, WEIGHTED = ("nearest", "nearest_exact"), ("linear", "cubic", "lanczos")


# ---- the launchers -------------------------------------------------------------------------------


def parameters(name: str) -> Operand:
    return Operand(name, lambda f: f["c"], lambda f: element(f, "param_dtype"), True)


def statistics(name: str) -> Operand:
    return Operand(name, lambda f: f["c"], accumulator)


def _stats(f: Fields, given: set[str]) -> bool:
    return _running(f, given) and ("x" in given or not f["training"])


def _running(f: Fields, given: set[str]) -> bool:
    both = len(given & {"running_mean", "running_var"})
    return both == 2 or (both == 0 and (f["training"] or f["c"] == 0))


def _backward(f: Fields, given: set[str]) -> bool:
    wants_x = "dw" in given or (f["training"] and "dx" in given) or f["relu"]
    return "x" in given or not wants_x


def _double_backward(f: Fields, given: set[str]) -> bool:
    wants_x = f["training"] or "ddw" in given
    return ("x" in given or not wants_x) and ("dy" in given or not given & {"gx", "gw"})


X, Y, DX, DY = tensor("x", x_size), tensor("y", y_size), tensor("dx", x_size), tensor("dy", y_size)
W, DW = tensor("w", w_size), tensor("dw", w_size)
DB = channels("db", "k", True)
NORM_X = tuple(tensor(name, x_size, True) for name in ("x", "residual", "dx", "dresidual", "dy"))
_x, RESIDUAL, _dx, DRESIDUAL, _dy = NORM_X
WEIGHT, BIAS, MEAN, INVSTD = (
    parameters("weight"),
    parameters("bias"),
    statistics("mean"),
    statistics("invstd"),
)
RUNNING = parameters("running_mean"), parameters("running_var")
NORM_Y = tensor("y", x_size)


def nearest(r: random.Random) -> Fields:
    return resize(r, NEAREST, (*FLOATING, "u8"))


def nearest_adjoint(r: random.Random) -> Fields:
    return resize(r, NEAREST)


def weighted(r: random.Random) -> Fields:
    return resize(r, WEIGHTED)


def weighted_u8(r: random.Random) -> Fields:
    return resize(r, WEIGHTED, ("u8",))


def norm_without_relu(r: random.Random) -> Fields:
    return norm(r) | {"relu": False}


POSITIONS = indices("positions", y_size, "in_")
INDICES = indices("indices", x_size, "out")
OPS: dict[str, Op] = {
    "conv": Op("ConvParams", conv, (X, W, channels("bias", "k", True), Y)),
    "conv_input_grad": Op("ConvParams", conv, (DY, W, channels("bias", "c", True), DX)),
    "conv_weight_grad": Op("ConvParams", conv, (DY, X, DW, DB)),
    "conv_backward": Op("ConvParams", conv, (DY, X, W, DX, DW, DB)),
    "conv_bias_grad": Op("ConvParams", conv, (DY, channels("db", "k"))),
    "avg_pool": Op("PoolParams", average, (X, Y)),
    "avg_pool_adjoint": Op("PoolParams", average, (DY, DX)),
    "max_pool": Op("PoolParams", maximum, (X, Y, indices("positions", y_size, "in_", True))),
    "gather": Op("PoolParams", maximum, (X, POSITIONS, Y)),
    "scatter_add": Op("PoolParams", maximum, (DY, POSITIONS, DX)),
    "max_unpool": Op("UnpoolParams", unpool, (X, INDICES, Y)),
    "max_unpool_adjoint": Op("UnpoolParams", unpool, (DY, INDICES, DX)),
    "batch_norm_stats": Op("BatchNormParams", norm, (_x, *RUNNING, MEAN, INVSTD), _stats),
    "batch_norm_apply": Op("BatchNormParams", norm, (X, WEIGHT, BIAS, MEAN, INVSTD, RESIDUAL, NORM_Y)),
    "batch_norm": Op(
        "BatchNormParams", norm, (X, WEIGHT, BIAS, *RUNNING, RESIDUAL, MEAN, INVSTD, NORM_Y), _running
    ),
    "batch_norm_backward": Op(
        "BatchNormParams",
        norm,
        (
            *(tensor("dy", x_size), _x, WEIGHT, BIAS, MEAN, INVSTD, RESIDUAL),
            *(_dx, parameters("dw"), parameters("db"), DRESIDUAL),
        ),
        _backward,
    ),
    "batch_norm_double_backward": Op(
        "BatchNormParams",
        norm_without_relu,
        (
            *(MEAN, INVSTD, WEIGHT, _x, _dy, tensor("ddx", x_size, True)),
            *(parameters("ddw"), parameters("ddb")),
            *(tensor("gx", x_size, True), parameters("gw"), tensor("gdy", x_size, True)),
        ),
        _double_backward,
    ),
    "interpolate_nearest": Op("InterpolateParams", nearest, (X, Y)),
    "interpolate_nearest_adjoint": Op("InterpolateParams", nearest_adjoint, (DY, DX)),
    "interpolate_weighted": Op("InterpolateParams", weighted, (X, Y)),
    "interpolate_weighted_adjoint": Op("InterpolateParams", weighted, (DY, DX)),
    "interpolate_weighted_u8": Op("InterpolateParams", weighted_u8, (X, Y)),
}
ENUMS = {
    "dtype": "DType",
    "param_dtype": "DType",
    "positions": "IndexType",
    "filter": "Filter",
    "kernel_family": "ConvKernel",
}


def params(module: ModuleType, struct: str, fields: Fields) -> Any:
    """The struct of these fields; tags by name, or as numbers, known or not."""
    values = {}
    for name, value in fields.items():
        if name in ENUMS:
            enum = getattr(module, ENUMS[name])
            value = getattr(enum, value) if isinstance(value, str) else enum(value)
        values[name] = value
    return getattr(module, struct)(**values)


# ---- convolutions in CUDA ------------------------------------------------------------------------

# Of a launcher, those for which plans choose the kernels.
PASSES = {
    "conv": ("forward",),
    "conv_input_grad": ("input_grad",),
    "conv_weight_grad": ("weight_grad",),
    "conv_backward": ("input_grad", "weight_grad"),
}


def with_kernels(r: random.Random, module: ModuleType, device: Any, name: str, fields: Fields) -> Fields:
    """The fields with the name of some kernels, if a plan says that they serve the launcher's passes."""
    named = fields | {"kernel_family": r.choice(tuple(module.ConvKernel.__members__))}
    try:
        for which in PASSES[name]:
            module.conv_plan(params(module, "ConvParams", named), getattr(module.ConvPass, which), device)
    except ValueError:
        return fields
    return named
