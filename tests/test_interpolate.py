"""What the table of cases cannot say about interpolation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastops
import fastops.functional as G
from tests import simt
from tests.cases import JUDGED, TORCH_VERSION
from tests.cases.interpolate import TORCH_HAS_LANCZOS
from tests.conftest import device_of
from tests.tolerance import assert_same_layout

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def row(size: int, channels: int, dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
    """An image of one row whose values are its column numbers."""
    return torch.arange(size, device=device).to(dtype).view(1, 1, 1, size).repeat(1, channels, 1, 1)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_nearest_copies_what_torch_copies(mode: str, channels_last: bool, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(1, 900, (150, 2), generator=generator).tolist()
    options: list[tuple[int, dict[str, Any]]] = [(i, dict(size=(1, o))) for i, o in draws]
    for factor in (2, 0.5, 1.1, 2.3, 1 / 3, 0.7, 3.7):
        options += [(i, dict(scale_factor=(1, factor))) for i, _ in draws[:15] if int(i * factor)]
    for size, kwargs in options:
        x = row(size, 4, torch.float32)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        ours = G.interpolate(x.to(device_of(backend)), mode=mode, **kwargs).cpu()
        assert torch.equal(ours, F.interpolate(x, mode=mode, **kwargs)), (size, kwargs)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (1, 8, 5, 5), (1, 19, 4, 4), (1, 70, 3, 4), (1, 600, 2, 3)])
def test_nearest_takes_uint8(mode: str, shape: tuple[int, ...], backend: str) -> None:
    for memory_format in LAYOUTS:
        x = torch.randint(256, shape, dtype=torch.uint8).contiguous(memory_format=memory_format)
        for size in ((12, 14), (3, 9)):
            theirs = F.interpolate(x, size=size, mode=mode)
            ours = G.interpolate(x.to(device_of(backend)), size=size, mode=mode).cpu()
            assert torch.equal(ours, theirs)
            assert_same_layout(ours, theirs)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 17, 23),
        (1, 1, 30, 8),
        (1, 4, 9, 64),
        (1, 19, 12, 13),
        (1, 96, 7, 8),
        (2, 5, 11, 13),
        (0, 3, 9, 9),
    ],
)
def test_uint8_equals_torch(mode: str, antialias: bool, shape: tuple[int, ...], backend: str) -> None:
    for memory_format in LAYOUTS:
        x = torch.randint(256, shape, dtype=torch.uint8).contiguous(memory_format=memory_format)
        for kwargs in (dict(size=(5, 40)), dict(size=(33, 6)), dict(scale_factor=2), dict(scale_factor=0.37)):
            theirs = F.interpolate(x, mode=mode, antialias=antialias, **kwargs)
            ours = G.interpolate(x.to(device_of(backend)), mode=mode, antialias=antialias, **kwargs).cpu()
            assert torch.equal(ours, theirs), kwargs
            assert_same_layout(ours, theirs)


def test_uint8_in_odd_places(backend: str) -> None:
    """Addresses that suit no vector, rows that suit some; far down, far up; Lanczos."""
    modes = [("bilinear", False), ("bicubic", True), ("lanczos", True)]
    for mode, antialias in modes if TORCH_HAS_LANCZOS else modes[:2]:
        for shape, size in (
            ((1, 3, 211, 8), (3, 16)),
            ((2, 1, 5, 307), (40, 4)),
            ((1, 16, 9, 12), (7, 36)),
            ((1, 3, 1, 1), (4, 5)),
        ):
            for memory_format, skipped in itertools.product(LAYOUTS, (0, 1, 4)):
                values = torch.randint(256, (math.prod(shape) + skipped,), dtype=torch.uint8)
                strides = torch.empty(shape, device="meta").to(memory_format=memory_format).stride()
                x = values[skipped:].as_strided(shape, strides, skipped)
                theirs = F.interpolate(x, size=size, mode=mode, antialias=antialias)
                ours = G.interpolate(
                    x.to(device_of(backend)), size=size, mode=mode, antialias=antialias
                ).cpu()
                assert torch.equal(ours, theirs), (mode, shape, memory_format, skipped)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialias_in_16_bits(mode: str, dtype: torch.dtype, backend: str) -> None:
    x = torch.randn(1, 3, 31, 29).to(dtype)
    for size in ((7, 10), (40, 12)):
        reference = F.interpolate(x.double(), size=size, mode=mode, antialias=True)
        ours = G.interpolate(x.to(device_of(backend)), size=size, mode=mode, antialias=True).cpu()
        assert torch.allclose(ours.double(), reference, rtol=torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(size=(9, 4), mode="nearest"),
        dict(scale_factor=1.7, mode="nearest-exact"),
        dict(size=(9, 4), mode="bilinear", align_corners=True),
        dict(scale_factor=1.7, mode="bicubic"),
        dict(size=(3, 9), mode="bicubic", antialias=True),
    ],
)
def test_adjoint(kwargs: dict[str, Any], backend: str) -> None:
    """<A x, y> = <x, A* y>, up to rounding."""
    for shape in ((2, 3, 7, 11), (1, 20, 7, 11), (1, 1, 2, 1501)):
        for memory_format in LAYOUTS:
            x = torch.randn(shape, dtype=torch.float64, device=device_of(backend))
            x = x.contiguous(memory_format=memory_format).requires_grad_()
            y = G.interpolate(x, **kwargs)
            dy = torch.randn_like(y)
            (dx,) = torch.autograd.grad(y, x, dy)
            assert math.isclose((y * dy).sum().item(), (x * dx).sum().item(), rel_tol=1e-11, abs_tol=1e-11)


def test_coordinates_past_fp32(backend: str) -> None:
    """Neighbours past 2^24 have different coordinates, which fp32 could not tell apart."""
    size = 2**24 + 6
    x = torch.zeros(1, 1, 1, size, dtype=torch.uint8, device=device_of(backend))
    x[..., -6:] = torch.arange(1, 7, dtype=torch.uint8)
    y = G.interpolate(x, size=(1, size // 2), mode="nearest")
    assert y[0, 0, 0, -4:].tolist() == [0, 1, 3, 5]
    y = G.interpolate(x, size=(1, size // 2), mode="nearest-exact")
    assert y[0, 0, 0, -4:].tolist() == [0, 2, 4, 6]
    y = G.interpolate(x[..., ::2].contiguous(), scale_factor=(1, 4), mode="nearest")
    assert y[0, 0, 0, -14:].tolist() == [0] * 2 + [1] * 4 + [3] * 4 + [5] * 4


@pytest.mark.parametrize("size", [(8, 17), (9, 17), (8, 12), (9, 12)], ids=str)
@pytest.mark.parametrize("antialias", [False, True], ids=["", "antialias"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_what_is_not_finite_stays_where_the_taps_are(
    channels: int, mode: str, antialias: bool, size: tuple[int, int], backend: str
) -> None:
    """A table pads short rows of taps with weights of 0, and an axis that stays as long as it is has one tap
    only: nothing else must be read, forward or backward, where torch does not."""
    options = dict(size=size, mode=mode, antialias=antialias)
    for memory_format in LAYOUTS:
        x = torch.randn(1, channels, 9, 12)
        x[:, :, 4, 3] = float("inf")
        x[:, :, 7, 9] = float("nan")
        dy = torch.randn(1, channels, *size)
        dy[:, :, 4, 3] = float("inf")
        dy[:, :, 6, 9] = float("nan")
        found = []
        for module, device in ((F, "cpu"), (G, device_of(backend))):
            leaf = x.to(device).contiguous(memory_format=memory_format).requires_grad_()
            y = module.interpolate(leaf, **options)
            found.append((y.cpu(), torch.autograd.grad(y, leaf, dy.to(device))[0].cpu()))
        for theirs, ours in zip(*found, strict=True):
            assert not (theirs.isfinite() & ~ours.isfinite()).any()


@pytest.mark.parametrize(
    "shape, kwargs",
    [
        ((3, 4, 60, 60), dict(size=(420, 420), mode="bilinear")),
        ((1, 9, 500, 500), dict(size=(499, 501), mode="bilinear", antialias=True)),
        ((2, 1, 1000, 1000), dict(size=(2100, 1010), mode="bicubic")),
        ((1, 2, 40, 60000), dict(size=(37, 9), mode="bilinear", antialias=True)),
    ],
    ids=["planes share a thread", "four at a time", "two passes in pieces", "many taps"],
)
def test_large(shape: tuple[int, ...], kwargs: dict[str, Any], backend: str) -> None:
    """More work than a GPU's kernels have threads for, or than a workspace holds at once."""
    x = torch.randn(shape)
    reference = F.interpolate(x.double(), **kwargs)
    ours = G.interpolate(x.to(device_of(backend)), **kwargs).cpu()
    torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-5)


def test_large_uint8(backend: str) -> None:
    x = torch.randint(256, (4, 1, 8, 5), dtype=torch.uint8)
    theirs = F.interpolate(x, size=(1, 530000), mode="bilinear")
    assert torch.equal(
        G.interpolate(x.to(device_of(backend)), size=(1, 530000), mode="bilinear").cpu(), theirs
    )


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_64_bit_indices(mode: str, dtype: Any, rows: int, channels: int, backend: str) -> None:
    """An image beyond 2^31 elements, few of which are read: the others are memory that nobody touches."""
    if backend != simt.NAME or simt.MODE != "plain":
        pytest.skip("elsewhere every element would be computed, or shadowed by a sanitizer")
    size = 2**31 // channels + 9
    pixels = np.zeros((size, channels), dtype)
    middle, last = np.arange(1, channels + 1), np.arange(11, channels + 11)
    pixels[size // 2], pixels[-1] = middle, last
    x = torch.from_numpy(pixels).view(1, 1, size, channels).permute(0, 3, 1, 2)
    y = G.interpolate(x, size=(rows, 3), mode=mode, align_corners=True)
    for r in range(rows):
        assert y[0, :, r].T.tolist() == [[0] * channels, middle.tolist(), last.tolist()]


@pytest.mark.parametrize(
    "shape, kwargs",
    [
        ((2, 8, 6, 16), dict(size=(9, 24), mode="bilinear")),
        ((2, 8, 6, 16), dict(size=(13, 40), mode="bicubic")),
        ((1, 16, 41, 40), dict(size=(3, 4), mode="bilinear", antialias=True)),
        ((1, 8, 4, 80), dict(size=(40, 8), mode="bicubic")),
    ],
    ids=["at once", "far up", "far down", "up and down"],
)
def test_unaligned(shape: tuple[int, ...], kwargs: dict[str, Any], backend: str) -> None:
    """Neither values nor gradients depend on the addresses of the tensors, bit for bit."""

    def shifted(t: torch.Tensor) -> torch.Tensor:
        view = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].as_strided(
            t.shape, t.stride(), 1
        )
        return view.copy_(t)

    dtype = torch.float32 if kwargs.get("antialias") else torch.bfloat16
    for memory_format in LAYOUTS:
        x = torch.randn(shape).to(device_of(backend), dtype).contiguous(memory_format=memory_format)
        results = []
        for change in (torch.clone, shifted):
            moved = change(x).requires_grad_()
            y = G.interpolate(moved, **kwargs)
            dy = change((y.detach() + 1).contiguous(memory_format=memory_format))
            results.append((y, *torch.autograd.grad(y, moved, dy)))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


X = torch.zeros(1, 2, 4, 5)


@pytest.mark.parametrize(
    "x, kwargs",
    [
        (X, dict()),
        (X, dict(size=3, scale_factor=2)),
        (X, dict(size=3, align_corners=True)),
        (X, dict(size=3, mode="area", align_corners=False)),
        (X, dict(size=3, antialias=True)),
        (X, dict(size=3, mode="area", antialias=True)),
        (X, dict(size=3, recompute_scale_factor=True)),
        (X, dict(size=(3,))),
        (X, dict(scale_factor=(2.0,))),
        (X, dict(size=3, mode="lanczos")),
        (X, dict(size=3, mode="lanczos", antialias=True, align_corners=True)),
        (X, dict(size=2.5)),
        (X, dict(size=(2.0, 3.0))),
        (X, dict(size=True)),
        (X, dict(scale_factor="a")),
        (X, dict(size=3, mode="bilinear", align_corners=1)),
        (X, dict(scale_factor=float("nan"))),
        (X, dict(scale_factor=float("inf"))),
        (X, dict(scale_factor=0)),
        (X, dict(scale_factor=1e-9)),
        (X, dict(scale_factor=-1.0)),
        (X, dict(scale_factor=1e300)),
        (X, dict(size=0)),
        (X, dict(size=(-1, 2))),
        (X[:, :0], dict(size=3)),
        (X[:, :, :0], dict(size=3)),
        (X, dict(size=3, mode="linear")),
        (X, dict(size=3, mode="trilinear")),
        (X, dict(size=3, mode="no such mode")),
        (X[0, 0], dict(size=())),
        (X[0], dict(size=3, mode="bicubic")),
        (X.long(), dict(size=3)),
        (X.bool(), dict(size=3, mode="bilinear")),
        (X.byte(), dict(size=3, mode="area")),
    ],
    ids=str,
)
def test_errors(x: torch.Tensor, kwargs: dict[str, Any]) -> None:
    with pytest.raises(Exception) as theirs:
        F.interpolate(x, **kwargs)
    with pytest.raises(theirs.type if TORCH_VERSION == JUDGED else Exception):
        G.interpolate(x, **kwargs)


def test_ranks_without_a_kernel_are_named() -> None:
    with pytest.raises(NotImplementedError, match="4-d"):
        G.interpolate(torch.zeros(1, 2, 3), size=4)


def test_meta() -> None:
    x = torch.empty(2, 3, 4, 5, device="meta").contiguous(memory_format=torch.channels_last)
    for mode in ("nearest", "bilinear", "bicubic"):
        y = G.interpolate(x, scale_factor=2, mode=mode)
        assert y.is_meta and y.shape == (2, 3, 8, 10)
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "module",
    [
        nn.Upsample(scale_factor=2),
        nn.Upsample(size=(5, 7), mode="bilinear", align_corners=True),
        nn.Upsample(scale_factor=(1.5, 2.6), mode="bicubic", recompute_scale_factor=True),
        nn.UpsamplingNearest2d(scale_factor=2),
        nn.UpsamplingBilinear2d(size=9),
    ],
    ids=repr,
)
def test_modules(module: nn.Module) -> None:
    x = torch.randn(2, 3, 4, 5)
    y, text = module(x), repr(module)
    assert len(fastops.convert(module).swapped) == 1
    assert repr(module) == text
    torch.testing.assert_close(module(x), y)
    fastops.revert(module)
