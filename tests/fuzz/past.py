"""Calls that have failed once, as hypothesis had made them small; asked first, always."""

from __future__ import annotations

from tests.fuzz.call import Call

PAST: list[tuple[Call, str]] = [
    (
        Call("max_pool2d", ((1, 1, 9, 9),), {"kernel_size": 3, "stride": 1, "padding": 2, "dilation": 2}),
        "padding beyond half of the kernel was let through where the dilated window is larger",
    ),
    (
        Call("conv_transpose2d", ((3, 15, 5, 13), (15, 0, 5, 2), None), {"groups": 1}, "float16"),
        "a weight without output channels was let through",
    ),
    (
        Call("conv2d", ((2, 4, 6, 0), (8, 4, 3, 3), None), {"padding": 2}),
        "an image without columns was let through where padding made room",
    ),
    (
        Call("max_unpool2d", ((1, 1, 1, 12),) * 2, {"kernel_size": 2, "padding": (1, 1), "plane": 0}),
        "no plane to unpool to: backends differed",
    ),
    (
        Call("interpolate", ((1, 1, 1, 2),), {"mode": "bilinear", "scale_factor": 1.25}),
        "the size stays: torch copies, and does not resize by the factor",
    ),
    (
        Call("interpolate", ((2, 3, 3, 3),), {"mode": "bicubic", "scale_factor": 1.25}, "uint8"),
        "the same in uint8",
    ),
    (
        Call(
            "interpolate", ((3, 9, 2, 1),), {"mode": "bilinear", "size": (14, 1), "antialias": True}, "uint8"
        ),
        "torch's antialiasing to one column is wrong in NCHW: channels_last is the judge",
    ),
    (
        Call("interpolate", ((1, 3, 2, 1),), {"mode": "bilinear", "size": 1}, "uint8"),
        "torch fails an assertion of its own",
    ),
    (
        Call("batch_norm", ((1, 2, 1, 1, 2), (2,), (2,), None, None, None), {}, forms=("reversed",)),
        "strides that are both layouts', in five dimensions",
    ),
    (
        Call("interpolate", ((1, 5, 2, 1),), {"mode": "bilinear", "size": (3, 1)}, "uint8"),
        "torch mixes the channels of one column in NCHW, without antialiasing, too",
    ),
    (
        Call("batch_norm", ((2, 2, 32, 32), *[None] * 5), {"training": True}, "float64"),
        "torch's own error in fp64, of a mean that is added up one by one, was above the floor",
    ),
    (
        Call(
            "batch_norm",
            ((3, 4), *[None] * 5),
            {"training": True, "activation": "relu"},
            forms=(*["contiguous"] * 6, "expanded"),
            values="ties",
            seed=404,
        ),
        "an expanded dy was not zero where a rounding decides the ReLU",
    ),
    (
        Call(
            "batch_norm",
            ((2, 3, 32, 32), (3,), (3,), None, None, None),
            {"training": True, "momentum": 1.0},
            "float64",
            seed=1,
        ),
        "the same of running statistics",
    ),
    (
        Call(
            "interpolate",
            ((1, 1, 2, 4),),
            {"mode": "bilinear", "scale_factor": (2.0, 0.25), "antialias": True},
        ),
        "torch mixes the rows of one channel's one column",
    ),
    (
        Call("interpolate", ((1, 1, 32, 32),), {"mode": "nearest", "scale_factor": 2.3}, "float64"),
        "torch's nearest elements in fp64 depend on the layout and on the size",
    ),
]
