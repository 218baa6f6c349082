"""What the table of cases cannot say about interpolation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastops
import fastops.functional as G
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
@pytest.mark.parametrize("shape", [(2, 3, 17, 23), (1, 1, 30, 8), (1, 4, 9, 64), (1, 19, 12, 13)])
def test_uint8_equals_torch(mode: str, antialias: bool, shape: tuple[int, ...], backend: str) -> None:
    for memory_format in LAYOUTS:
        x = torch.randint(256, shape, dtype=torch.uint8).contiguous(memory_format=memory_format)
        for kwargs in (dict(size=(5, 40)), dict(size=(33, 6)), dict(scale_factor=2), dict(scale_factor=0.37)):
            theirs = F.interpolate(x, mode=mode, antialias=antialias, **kwargs)
            ours = G.interpolate(x.to(device_of(backend)), mode=mode, antialias=antialias, **kwargs).cpu()
            assert torch.equal(ours, theirs), kwargs
            assert_same_layout(ours, theirs)


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
    for shape in ((2, 3, 7, 11), (1, 20, 7, 11)):
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


def test_infinities_stay_where_the_taps_are(backend: str) -> None:
    """A table pads short rows of taps with weights of 0; those must not spread an infinity or NaN."""
    for mode, kwargs in (
        ("bicubic", {}),
        ("bilinear", {}),
        ("bicubic", dict(antialias=True)),
        ("bilinear", dict(antialias=True)),
    ):
        for channels in (1, 3, 16):
            for memory_format in LAYOUTS:
                x = torch.randn(1, channels, 9, 12)
                x[:, :, 4, 3] = float("inf")
                x[:, :, 7, 9] = float("nan")
                x = x.contiguous(memory_format=memory_format)
                theirs = F.interpolate(x, size=(8, 17), mode=mode, **kwargs)
                ours = G.interpolate(x.to(device_of(backend)), size=(8, 17), mode=mode, **kwargs).cpu()
                assert not (theirs.isfinite() & ~ours.isfinite()).any()


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
    with pytest.raises(theirs.type):
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
