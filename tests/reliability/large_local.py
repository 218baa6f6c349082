"""Cases of large.py whose outputs come from inputs nearby: bands of rows, with zeros beside them, go to
torch in fp64. What is not near a band must be zero; gradients of weights and biases are sums over the bands.

Where it ends: bf16, strides and dilations of 1, at most 8 channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G
from tests.reliability.edge import LAYOUTS, ROWS, bands, laid_out, need, nonzeros, random, tall
from tests.reliability.tally import Tally

MARGIN = 8  # rows beside a band that are compared, too; more than an op reaches


class Local(NamedTuple):
    """An op whose outputs come from inputs nearby. `ratio`: rows of outputs per row of inputs."""

    op: str
    call: Callable[..., Tensor]  # of F or G, x and parameters
    ratio: float = 1
    parameters: tuple[tuple[int, ...], ...] = ()
    layouts: tuple[tuple[int, bool], ...] = ((1, False), (8, True))


def _resize(ratio: float, **options: Any) -> dict[str, Any]:
    return dict(call=lambda f, x: f.interpolate(x, scale_factor=(ratio, 1), **options), ratio=ratio)


def _conv(groups: int, **options: Any) -> Callable[..., Tensor]:
    return lambda f, x, w, b: f.conv2d(x, w, b, groups=groups, **options)


LOCAL = (
    Local("interpolate nearest-exact", **_resize(2, mode="nearest-exact")),
    Local("interpolate bicubic", **_resize(2, mode="bicubic")),
    Local("interpolate bilinear antialias", **_resize(0.5, mode="bilinear", antialias=True)),
    Local("conv2d 3 × 3, one channel", _conv(1, padding=1), 1, ((1, 1, 3, 3), (1,)), ((1, False),)),
    Local("conv2d 3 × 3, depthwise", _conv(8, padding=1), 1, ((8, 1, 3, 3), (8,)), LAYOUTS[1:]),
    Local("conv2d 3 × 3, 8 to 8", _conv(1, padding=1), 1, ((8, 8, 3, 3), (8,)), LAYOUTS[1:]),
    Local("conv2d 1 × 1, 8 to 8", _conv(1), 1, ((8, 8, 1, 1), (8,)), LAYOUTS[1:]),
)


def near_bands(rows: int) -> list[tuple[int, int]]:
    return [(max(a - MARGIN, 0), min(b + MARGIN, rows)) for a, b in bands(rows)]


def beside_nothing(what: str, large: Tensor, at: list[int], pieces: list[Tensor]) -> None:
    """A large result is these pieces, which begin at these rows, and else zero."""
    count = 0
    for row, expected in zip(at, pieces, strict=True):
        found = large[:, :, row : row + expected.shape[2]]
        torch.testing.assert_close(
            found.double(), expected, rtol=1e-2, atol=1e-2, msg=lambda m, row=row: f"{what}, {row}: {m}"
        )
        count += int(found.count_nonzero())
    assert nonzeros(large) == count, f"{what} is not zero elsewhere"


def local(op: Local, channels: int, channels_last: bool) -> None:
    """Forward and all gradients."""
    need(9)
    high = ROWS // 8 * 8
    x = tall(channels, channels_last, high if op.ratio <= 1 else high // 2).requires_grad_()
    parameters = [random(*shape, seed=5 + k) / 8 for k, shape in enumerate(op.parameters)]
    if parameters:
        parameters[-1].zero_()  # a bias: zeros stay zeros
    wide = [p.double().requires_grad_() for p in parameters]
    y = op.call(G, x, *[p.requires_grad_() for p in parameters])
    near = near_bands(x.shape[2])
    with torch.no_grad():
        pieces = [op.call(F, x[:, :, a:b].double(), *wide) for a, b in near]
        beside_nothing("y", y, [int(a * op.ratio) for a, _ in near], pieces)
    dy = tall(channels, channels_last, int(high * min(op.ratio, 1)), seed=3)
    assert dy.shape == y.shape
    grads = torch.autograd.grad(y, (x, *parameters), dy)
    del y
    sums, at, pieces = [torch.zeros_like(p) for p in wide], [], []
    for a, b in near_bands(dy.shape[2]):
        at.append(int(a / op.ratio))
        piece = x.detach()[:, :, at[-1] : int(b / op.ratio)].double().requires_grad_()
        dx, *others = torch.autograd.grad(op.call(F, piece, *wide), (piece, *wide), dy[:, :, a:b].double())
        pieces.append(dx)
        sums = [s + other for s, other in zip(sums, others, strict=True)]
    beside_nothing("dx", grads[0], at, pieces)
    for k, (found, expected) in enumerate(zip(grads[1:], sums, strict=True)):
        error, most = (found - expected).abs().max(), expected.abs().max()
        assert error <= 1e-2 * most, f"gradient of parameter {k}: {error} off, of at most {most}"


def every_output() -> Iterator[Tally]:
    for op in LOCAL:
        line = Tally(op.op, "more than 2³¹ elements, gradients", "cpu", "bfloat16")
        for layout in op.layouts:
            with line.case(laid_out(*layout)):
                local(op, *layout)
        yield line
