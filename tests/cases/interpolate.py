"""Interpolation: up, down, odd ratios, edges, factors that coordinates do and do not use."""

from __future__ import annotations

from typing import Any

import torch

from tests.cases import TORCH_VERSION, Case

# Torch has no antialiasing for 16-bit floats; tests/test_interpolate.py compares those with fp64.
ANTIALIAS_DTYPES = (torch.float64, torch.float32)

NEAREST: list[tuple[Any, ...]] = [
    (((2, 3, 5, 7),), dict(scale_factor=2), "×2: the doubling path"),
    (((1, 8, 6, 6),), dict(scale_factor=(3, 2)), "integer factors that differ; a pixel is one chunk"),
    (((1, 1, 7, 11),), dict(size=(4, 5)), "down, primes: inputs that no output copies"),
    (((2, 19, 9, 5),), dict(size=(13, 17)), "up by odd ratios, C not a multiple of a vector"),
    (((1, 3, 4, 5),), dict(scale_factor=2.3), "the factor, not the ratio of sizes, gives coordinates"),
    (
        ((1, 3, 4, 5),),
        dict(scale_factor=2.3, recompute_scale_factor=True),
        "the ratio of sizes gives coordinates",
    ),
    (((1, 3, 4, 9),), dict(scale_factor=1.1), "the size stays, the factor does not"),
    (((1, 2, 1, 1),), dict(size=(5, 4)), "one pixel"),
    (((1, 2, 6, 5),), dict(size=1), "one output"),
    (((1, 2, 3, 4),), dict(size=(3, 4)), "nothing to do"),
    (((0, 3, 4, 4),), dict(size=6), "an empty batch"),
    (((1, 1, 1, 3),), dict(size=(2, 4100)), "an input with more outputs than the adjoint's buffer holds"),
    (((1, 33, 3, 4),), dict(size=(7, 9)), "a pixel that is no power of two, over 16 bytes"),
    (((1, 2, 70, 3),), dict(size=(35, 6)), "more rows than one strip, on both sides"),
]
WEIGHTED: list[tuple[Any, ...]] = [
    (((2, 3, 5, 7),), dict(scale_factor=2), "×2"),
    (((1, 1, 8, 9),), dict(size=(5, 4)), "down"),
    (((1, 8, 7, 11),), dict(size=(13, 5)), "up along one axis, down along the other, primes"),
    (((1, 19, 6, 5),), dict(size=(9, 13)), "C not a multiple of a vector"),
    (((1, 3, 5, 6),), dict(size=(11, 14), align_corners=True), "corners coincide, up"),
    (((1, 5, 9, 12),), dict(size=(4, 5), align_corners=True), "corners coincide, down"),
    (((1, 2, 6, 5),), dict(size=1, align_corners=True), "one output: a step of 0"),
    (((1, 4, 1, 1),), dict(size=(3, 5)), "one pixel: every tap folds onto it"),
    (((1, 2, 2, 3),), dict(size=(7, 20)), "fewer inputs than taps"),
    (((1, 3, 4, 5),), dict(scale_factor=2.3), "the factor, not the ratio of sizes, gives coordinates"),
    (((1, 3, 4, 5),), dict(scale_factor=2.3, recompute_scale_factor=True), "and the other way"),
    (((2, 3, 4, 4),), dict(scale_factor=0.6), "a factor below 1"),
    (((1, 2, 3, 4),), dict(size=(3, 4)), "nothing to do"),
    (((0, 3, 4, 4),), dict(size=6), "an empty batch"),
    (((1, 2, 3, 40),), dict(size=(3, 4)), "far down: most inputs are not read"),
    (((1, 1, 3, 3),), dict(size=(4, 70)), "far up: an input with more readers than taps in a table"),
    (((1, 96, 5, 7),), dict(size=(8, 5)), "many channels; up and down by no integer"),
    (((2, 5, 6, 16),), dict(size=(13, 40)), "rows of whole vectors; C that is none"),
    (((1, 8, 3, 4),), dict(size=(31, 48)), "far up along both axes: an adjoint in two passes, in vectors"),
    (((1, 3, 4, 31),), dict(size=(53, 3)), "far up along one axis, far down along the other"),
]
ANTIALIAS: list[tuple[Any, ...]] = [
    (((2, 3, 17, 23),), dict(size=(5, 7)), "down: wide taps"),
    (((1, 4, 5, 7),), dict(size=(11, 9)), "up: taps as without"),
    (((1, 19, 12, 10),), dict(size=(5, 13)), "down and up, C not a multiple of a vector"),
    (((1, 1, 9, 90),), dict(size=(4, 3)), "more taps than results share a vector for"),
    (((1, 3, 13, 11),), dict(scale_factor=0.4), "a factor"),
    (((0, 3, 9, 9),), dict(size=4), "an empty batch"),
    (((1, 1, 1, 1),), dict(size=(3, 2)), "one pixel"),
    (((1, 8, 41, 37),), dict(size=(3, 4)), "far down along both axes, in vectors of channels"),
    (((5, 1, 67, 16),), dict(size=(6, 8)), "far down along H: rows of whole vectors"),
    (((1, 3, 4, 203),), dict(size=(29, 5)), "up along H, far down along W"),
]
# Before torch 2.12 there is nothing to compare with.
TORCH_HAS_LANCZOS = TORCH_VERSION >= (2, 12)
AREA: list[tuple[Any, ...]] = [
    (((2, 3, 8, 8),), dict(scale_factor=0.5), "windows that divide"),
    (((1, 5, 7, 9),), dict(size=(3, 4)), "windows that overlap"),
]

CASES = (
    [
        Case("interpolate", s, dict(mode=m, **k), r)
        for m in ("nearest", "nearest-exact")
        for s, k, r in NEAREST
    ]
    + [Case("interpolate", s, dict(mode=m, **k), r) for m in ("bilinear", "bicubic") for s, k, r in WEIGHTED]
    + [
        Case("interpolate", s, dict(mode=m, antialias=True, **k), r, dtypes=ANTIALIAS_DTYPES)
        for m in ("bilinear", "bicubic", *(["lanczos"] if TORCH_HAS_LANCZOS else []))
        for s, k, r in ANTIALIAS
    ]
    + [
        Case(
            "interpolate",
            ((1, 3, 13, 11),),
            dict(mode="bicubic", antialias=True, size=(5, 6), align_corners=True),
            "align_corners changes the step only",
            dtypes=ANTIALIAS_DTYPES,
        ),
        Case(
            "interpolate",
            ((1, 3, 4, 9),),
            dict(mode="bilinear", scale_factor=1.1),
            "the size stays: a copy, whatever the factor",
        ),
        Case(
            "interpolate",
            ((1, 3, 4, 9),),
            dict(mode="bilinear", scale_factor=(1.2, 0.6)),
            "the height stays: a copy along that axis",
        ),
    ]
    + [Case("interpolate", s, dict(mode="area", **k), r) for s, k, r in AREA]
)
