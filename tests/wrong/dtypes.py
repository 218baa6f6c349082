"""Every function with every dtype that it does not serve, and with two that do not go together."""

from __future__ import annotations

from itertools import permutations

import torch

from tests.wrong.row import Row

FLOATING = ("float64", "float32", "float16", "bfloat16")
OTHERS = [
    name
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("complex32", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)
]
# {0} is the dtype.
CALLS = (
    "avg_pool2d(x.to({0}), 2)",
    "adaptive_avg_pool2d(x.to({0}), 2)",
    "max_pool2d(x.to({0}), 2)",
    "adaptive_max_pool2d(x.to({0}), 2)",
    "max_unpool2d(y.to({0}), i, 2)",
    "conv2d(x.to({0}), w.to({0}))",
    "conv_transpose2d(x.to({0}), v.to({0}))",
    "batch_norm(x.to({0}), rm, rv, g, b, True)",
    "interpolate(x.to({0}), 4)",
    "interpolate(x.to({0}), 4, mode='bilinear')",
    "interpolate(x.to({0}), 4, mode='bicubic', antialias=True)",
    "interpolate(x.to({0}), 4, mode='area')",
)
# {0} and {1} are different floating-point dtypes.
MIXED = (
    "conv2d(x.to({0}), w.to({1}))",
    "conv2d(x.to({0}), w.to({0}), e(8).to({1}))",
    "conv_transpose2d(x.to({0}), v.to({1}))",
    "conv_transpose2d(x.to({0}), v.to({0}), e(8).to({1}))",
    "batch_norm(x.to({0}), rm.to({1}), rv.to({1}))",
    "batch_norm(x.to({0}), rm.to({1}), rv.to({1}), g.to({1}), b.to({1}), True)",
    "batch_norm(x.to({0}), None, None, g.to({1}), b.to({1}), True)",
    "batch_norm(x.to({0}), rm.to({0}), rv.to({1}), training=True)",
)


def legal(call: str, first: str, second: str) -> bool:
    """fp32 parameters, all of them, beside a 16-bit x."""
    all_of_them = "rm.to({0})" not in call
    return "batch_norm" in call and all_of_them and "16" in first and second == "float32"


DTYPES: list[Row] = [
    (call.format(f"torch.{dtype}"), f"{dtype}: no kernel, whatever torch does", NotImplementedError)
    for dtype in OTHERS
    for call in CALLS
    if not (dtype == "uint8" and "interpolate" in call and "area" not in call)
] + [
    (call.format(f"torch.{first}", f"torch.{second}"), f"{first} with {second}", RuntimeError)
    for first, second in permutations(FLOATING, 2)
    for call in MIXED
    if not legal(call, first, second)
]
