"""Cases of large.py: statistics of 2³¹ elements, which is batch norm in training.

Few values at both ends of memory and around elements 2³⁰ and 2³¹ are not zero: from them means, variances and
gradients follow in fp64. All others of a channel have one and the same result.

Where it ends: bf16, without a residual. With two channels of 2³¹ elements the gradient of x is not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import fastops.functional as G
from tests.reliability.edge import DTYPE, EDGE, EDGES, laid_out, need, random, sparse
from tests.reliability.tally import Tally


def line_marks(count: int) -> Tensor:
    """Where elements are not zero: at both ends of memory, and around 2³⁰ and 2³¹."""
    starts = {0, EDGE // 2 - 96, min(EDGE - 96, count - 192), count - 192}
    return torch.cat([torch.arange(a, a + 192) for a in starts]).unique()


def compared(
    what: str, large: Tensor, channels_last: bool, marks: Tensor, marked: Tensor, plain: Tensor
) -> None:
    """What is expected at the marks, and beside them, where a channel has one value throughout."""
    flat = large.permute(0, 2, 3, 1).reshape(-1) if channels_last else large.view(-1)
    assert flat.data_ptr() == large.data_ptr()
    torch.testing.assert_close(
        flat[marks].double(), marked, rtol=1e-2, atol=1e-2, msg=lambda m: f"{what}: {m}"
    )
    c = len(plain)
    pixels = flat.view(-1, c) if channels_last else flat.view(c, -1).T
    value = pixels[len(pixels) // 3]
    torch.testing.assert_close(
        value.double(), plain, rtol=1e-2, atol=1e-9, msg=lambda m: f"{what} beside: {m}"
    )
    runs = [(flat, value.repeat(2**22))] if channels_last else zip(pixels.T, value[:, None], strict=True)
    found = sum(
        int((part != all_values[: len(part)]).count_nonzero())
        for run, all_values in runs
        for part in run.split(2**22 * c)
    )
    channel = marks % c if channels_last else marks // len(pixels)
    there = int((flat[marks] != value[channel]).sum())
    assert found == there, f"{what}: {found} values are not their channel's, not {there}"


def batch_norm(count: int, channels: int, channels_last: bool, relu: bool, large_dx: bool) -> None:
    """`count` elements in all; the gradient of x only where there is memory for it."""
    need(9 * count / EDGE if large_dx else 5 * count / EDGE)
    marks = line_marks(count)

    v, u = (random(len(marks), seed=seed) for seed in (0, 1))
    v[::3] *= -1

    def line(of: Tensor) -> Tensor:
        memory = sparse(count, DTYPE)
        memory[marks] = of
        if channels_last:
            return memory.view(1, 1, -1, channels).permute(0, 3, 1, 2)
        return memory.view(1, channels, 1, -1)

    x, dy = line(v).requires_grad_(large_dx), line(u)
    w = torch.arange(1.0, channels + 1).requires_grad_()
    b = torch.arange(channels) % 2 - 0.5
    b.requires_grad_()
    mean, variance = torch.zeros(channels), torch.zeros(channels)
    y = G.batch_norm(x, mean, variance, w, b, True, 1.0, activation="relu" if relu else None)
    m = count // channels
    channel = marks % channels if channels_last else marks // m
    v, u, weight, bias = (t.detach().double() for t in (v, u, w, b))

    def total(of: Tensor) -> Tensor:
        return torch.zeros(channels, dtype=torch.double).index_add_(0, channel, of)

    mu = total(v) / m
    squares = total((v - mu[channel]) ** 2) + (m - total(torch.ones_like(v))) * mu**2
    torch.testing.assert_close(mean.double(), mu, rtol=1e-5, atol=0)
    torch.testing.assert_close(variance.double(), squares / (m - 1), rtol=1e-5, atol=0)
    r = (squares / m + 1e-5).rsqrt()
    normal = (v - mu[channel]) * r[channel]
    z, plain = normal * weight[channel] + bias[channel], -mu * r * weight + bias
    if relu:
        u = u * (z > 0)
        z, plain = z.clamp(min=0), plain.clamp(min=0)

    compared("y", y.detach(), channels_last, marks, z, plain)
    *dx, dw, db = torch.autograd.grad(y, (*[x][: int(large_dx)], w, b), dy)
    del y
    sums, dots = total(u), total(u * normal)
    torch.testing.assert_close(db.double(), sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dw.double(), dots, rtol=1e-4, atol=1e-4)
    if dx:
        scale = weight * r
        expected = scale[channel] * (u - (sums / m)[channel] - normal * (dots / m)[channel])
        compared("dx", dx[0], channels_last, marks, expected, scale * (mu * r * dots / m - sums / m))


def every_output() -> Iterator[Tally]:
    several = [(EDGE + 1, 3, last) for last in (False, True)]
    others = [(count, 1, False) for count in EDGES] + [(2 * (EDGE + 1), 2, last) for last in (False, True)]
    for relu in (False, True):
        line = Tally("batch_norm, training" + ", relu" * relu, "at the edge, gradients", "cpu", "bfloat16")
        for count, *layout in several + others * (not relu):
            with line.case(f"{count} elements, {laid_out(*layout)}"):
                batch_norm(count, *layout, relu, large_dx=count <= EDGE + 1)
        yield line
