"""Cases of large.py whose input or output is large and whose other one has few elements.

Their results follow from closed forms: matrices along both axes in fp64 (adaptive averages, interpolation),
the extremes of what is not zero (adaptive maxima), indices (unpooling). Every element is compared.

Where it ends: bf16. Windows of adaptive max pooling span less than 2³⁰ elements of their plane. The gradient
of adaptive maxima of few inputs, and unpooling of 2³¹, would want 2³¹ indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastops
import fastops.functional as G
from tests.reliability.calls import backends, on_cpu_kernels
from tests.reliability.edge import BAND, DTYPE, LAYOUTS, ROW, bands, laid_out, need, nonzeros, random, tall
from tests.reliability.tally import Tally

# ---- what is a matrix along each axis -----------------------------------------------------------


def triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def cubic(t: float) -> Callable[[Tensor], Tensor]:
    def at(x: Tensor) -> Tensor:
        x = x.abs()
        outer = (((x - 5) * x + 8) * x - 4) * t
        return torch.where(x < 1, ((t + 2) * x - (t + 3)) * x * x + 1, torch.where(x < 2, outer, 0))

    return at


def _axes(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return torch.arange(inputs), torch.arange(outputs)[:, None]


def average(inputs: int, outputs: int) -> Tensor:
    i, o = _axes(inputs, outputs)
    begin, end = o * inputs // outputs, -(-(o + 1) * inputs // outputs)
    return ((i >= begin) & (i < end)).double() / (end - begin)


def nearest_exact(inputs: int, outputs: int) -> Tensor:
    i, o = _axes(inputs, outputs)
    return (i == (2 * o + 1) * inputs // (2 * outputs)).double()


def antialiased(filter: Callable[[Tensor], Tensor]) -> Callable[[int, int], Tensor]:
    def matrix(inputs: int, outputs: int) -> Tensor:
        i, o = _axes(inputs, outputs)
        step = inputs / outputs
        weight = filter((i + 0.5 - (o.double() + 0.5) * step) / max(step, 1.0))
        return weight / weight.sum(1, keepdim=True)

    return matrix


def from_corners(filter: Callable[[Tensor], Tensor]) -> Callable[[int, int], Tensor]:
    """Of axes that are made shorter by far: no tap beside a corner has weight."""

    def matrix(inputs: int, outputs: int) -> Tensor:
        i, o = _axes(inputs, outputs)
        return filter(i - o.double() * ((inputs - 1) / (outputs - 1)))

    return matrix


class Separable(NamedTuple):
    """y = A · x · Bᵀ for each channel."""

    op: str
    call: Callable[[Any, Tensor, tuple[int, int]], Tensor]
    matrix: Callable[[int, int], Tensor]  # (outputs, inputs) of an axis
    enlarges: bool = True  # and whether the matrix is right where outputs are more


def _interpolate(**options: Any) -> Callable[[Any, Tensor, tuple[int, int]], Tensor]:
    return lambda f, x, size: f.interpolate(x, size=size, **options)


SEPARABLE = (
    Separable("adaptive_avg_pool2d", lambda f, x, size: f.adaptive_avg_pool2d(x, size), average),
    Separable("interpolate nearest-exact", _interpolate(mode="nearest-exact"), nearest_exact),
    Separable(
        "interpolate bilinear, corners aligned",
        _interpolate(mode="bilinear", align_corners=True),
        from_corners(triangle),
        enlarges=False,
    ),
    Separable(
        "interpolate bicubic, corners aligned",
        _interpolate(mode="bicubic", align_corners=True),
        from_corners(cubic(-0.75)),
        enlarges=False,
    ),
    Separable(
        "interpolate bilinear antialias", _interpolate(mode="bilinear", antialias=True), antialiased(triangle)
    ),
    Separable(
        "interpolate bicubic antialias",
        _interpolate(mode="bicubic", antialias=True),
        antialiased(cubic(-0.5)),
    ),
)
FEW = (3, 2)  # high and wide


@lru_cache(maxsize=1)
def matrices(separable: Separable, high: int, wide: int, enlarge: bool) -> tuple[Tensor, Tensor]:
    """(large, few) along H and W: transposed where the op is from large to few."""
    if enlarge:
        return separable.matrix(FEW[0], high), separable.matrix(FEW[1], wide)
    return separable.matrix(high, FEW[0]).T, separable.matrix(wide, FEW[1]).T


def gathered(what: str, small: Tensor, large: Tensor, a: Tensor, b: Tensor) -> None:
    """small = Aᵀ · large · B, of which the bands are all."""
    expected = sum(a[i:j].T @ large[0, :, i:j].double() @ b for i, j in bands(large.shape[2]))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(small[0].double(), expected, rtol=1e-2, atol=0, msg=lambda m: f"{what}: {m}")


def spread(what: str, large: Tensor, small: Tensor, a: Tensor, b: Tensor) -> None:
    """large = A · small · Bᵀ, all of it."""
    middle = small[0].float() @ b.T.float()
    most = float(middle.abs().max() * a.abs().max())
    step = 2**22 // ROW
    for begin in range(0, large.shape[2], step):
        expected = a[begin : begin + step].float() @ middle
        error = (large[0, :, begin : begin + step].float() - expected).abs_().max()
        assert error <= 1e-2 * most, f"{what}: {float(error)} off in rows from {begin}, of at most {most}"


def few(channels: int, channels_last: bool) -> Tensor:
    x = random(1, channels, *FEW, seed=9)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def shrunk(separable: Separable, channels: int, channels_last: bool, backend: str, gradient: bool) -> None:
    """Large to few."""
    need(6 if gradient else 2)
    x = tall(channels, channels_last).requires_grad_(gradient)
    a, b = matrices(separable, *x.shape[2:], False)
    with fastops.backend(backend):
        y = separable.call(G, x, FEW)
    gathered("y", y.detach(), x.detach(), a, b)
    if gradient:
        dy = random(*y.shape, seed=9)
        (dx,) = torch.autograd.grad(y, x, dy)
        spread("dx", dx, dy, a, b)


def thinned(mode: str, channels: int, channels_last: bool, backend: str) -> None:
    """Nearest elements, of which the last is past 2³¹ only if there are many."""
    need(2)
    x, size = tall(channels, channels_last), (2**18 + 1, 2)
    with fastops.backend(backend):
        y = G.interpolate(x, size=size, mode=mode)
    half = int(mode == "nearest-exact")
    rows, columns = (
        (2 * torch.arange(o) + half) * i // (2 * o) for o, i in zip(size, x.shape[2:], strict=True)
    )
    assert torch.equal(y, x[:, :, rows][..., columns])


def enlarged(separable: Separable, channels: int, channels_last: bool) -> None:
    """Few to large."""
    need(6)
    dy = tall(channels, channels_last)
    x = few(channels, channels_last).requires_grad_()
    a, b = matrices(separable, *dy.shape[2:], True)
    y = separable.call(G, x, tuple(dy.shape[2:]))
    spread("y", y.detach(), x.detach(), a, b)
    (dx,) = torch.autograd.grad(y, x, dy)
    gathered("dx", dx, dy, a, b)


# ---- adaptive max pooling and max unpooling -----------------------------------------------------


def windows(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Where adaptive windows begin and end."""
    o = torch.arange(outputs)
    return o * inputs // outputs, -(-(o + 1) * inputs // outputs)


def adaptive_max(channels: int, channels_last: bool, backend: str, gradient: bool) -> None:
    """Four windows down, so that each has a band, or a part of one."""
    need(6 if gradient else 2)
    x = tall(channels, channels_last).requires_grad_(gradient)
    data, (high, wide) = x.detach(), x.shape[2:]
    data[:, :, -1, [0, wide // 2, wide - 1]] = 4  # the last windows' maxima
    with fastops.backend(backend):
        y, indices = G.adaptive_max_pool2d(x, (4, 3), return_indices=True)
    marked = torch.cat([torch.arange(i, j) for i, j in bands(high)])
    for p, (a, b) in enumerate(zip(*windows(high, 4), strict=True)):
        inside = marked[(marked >= a) & (marked < b)]
        for q, (c, d) in enumerate(zip(*windows(wide, 3), strict=True)):
            window = data[0, :, inside, c:d].flatten(1)
            most = window.amax(1, keepdim=True)
            at = torch.where(window == most, torch.arange(window.shape[1]), window.shape[1]).amin(1)
            first = inside[at // (d - c)] * wide + c + at % (d - c)
            assert torch.equal(y[0, :, p, q, None], most), f"window {p}, {q}"
            assert torch.equal(indices[0, :, p, q], first), f"index of window {p}, {q}"
    if not gradient:
        return
    dy = random(*y.shape, seed=9)
    (dx,) = torch.autograd.grad(y, x, dy)
    places = torch.arange(channels)[:, None] * high * wide + indices[0].flatten(1)
    unique, which = places.flatten().unique(return_inverse=True)
    sums = torch.zeros(len(unique)).index_add_(0, which, dy.float().flatten())
    channel, place = unique // (high * wide), unique % (high * wide)
    assert torch.equal(dx[0, channel, place // wide, place % wide], sums.to(DTYPE)), "dx"
    assert nonzeros(dx) == len(unique), "dx beside the maxima"


def adaptive_max_enlarged(channels: int, channels_last: bool) -> None:
    """Few to large: a window has one input or two, along each axis."""
    need(6)
    x = few(channels, channels_last)
    high, wide = tall(channels, channels_last).shape[2:]
    y = G.adaptive_max_pool2d(x, (high, wide))
    begin, end = windows(FEW[1], wide)
    columns = torch.maximum(x[..., begin], x[..., end - 1])
    begin, end = windows(FEW[0], high)
    step = 2**22 // ROW
    for a in range(0, high, step):
        expected = torch.maximum(columns[:, :, begin[a : a + step]], columns[:, :, end[a : a + step] - 1])
        assert torch.equal(y[:, :, a : a + step], expected), f"rows from {a}"


def unpooled(channels: int, channels_last: bool) -> None:
    """Few to large; of two equal indices the last one counts."""
    need(7)
    dy = tall(channels, channels_last)
    high, wide = dy.shape[2:]
    x = random(1, channels, 4, 4, seed=9)
    marked = torch.tensor([0, wide - 1, high // 2 * wide, (high - BAND) * wide, high * wide - 1])
    indices = marked[torch.arange(16) % 5].expand(channels, 16).clone()  # the first 11 lose to others
    indices[:, :8] += torch.arange(8)[:, None].expand(8, channels).T  # but for some of these
    indices = indices.clamp(max=high * wide - 1).view(x.shape)
    if channels_last:
        x, indices = (t.contiguous(memory_format=torch.channels_last) for t in (x, indices))
    x.requires_grad_()
    step = high // 4, wide // 4
    y = G.max_unpool2d(x, indices, step, step, output_size=(high, wide))
    flat, values = indices.flatten(2)[0], x.detach().flatten(2)[0]
    wins = torch.ones_like(flat, dtype=torch.bool)
    for k in range(15):
        wins[:, k] = (flat[:, k + 1 :] != flat[:, k : k + 1]).all(1)
    (dx,) = torch.autograd.grad(y, x, dy)
    channel = torch.arange(channels)[:, None]
    found = y.detach()[0, channel, flat // wide, flat % wide]
    assert torch.equal(found[wins], values[wins]), "y"
    assert nonzeros(y.detach()) == int(wins.sum()), "y elsewhere"
    expected = torch.where(wins, dy[0, channel, flat // wide, flat % wide], 0)
    assert torch.equal(dx[0].flatten(1), expected), "dx"


# ---- the lines -----------------------------------------------------------------------------------


def few_outputs() -> Iterator[Tally]:
    """Of all backends, in seconds."""
    chosen = list(filter(on_cpu_kernels, backends()))
    asked = "more than 2³¹ elements, few outputs"
    for separable in SEPARABLE:
        for backend in chosen if separable.matrix is not nearest_exact else ():
            line = Tally(separable.op, asked, backend, "bfloat16")
            with line.case("one channel"):
                shrunk(separable, 1, False, backend, False)
            yield line
    for backend in chosen:
        for mode in ("nearest", "nearest-exact"):
            line = Tally(f"interpolate {mode}", asked, backend, "bfloat16")
            for layout in LAYOUTS:
                with line.case(laid_out(*layout)):
                    thinned(mode, *layout, backend)
            yield line
        line = Tally("adaptive_max_pool2d", asked, backend, "bfloat16")
        for layout in LAYOUTS:
            with line.case(laid_out(*layout)):
                adaptive_max(*layout, backend, False)
        yield line


def every_output() -> Iterator[Tally]:
    """With gradients."""
    asked = "more than 2³¹ elements, gradients"
    for separable in SEPARABLE:
        line = Tally(separable.op, asked, "cpu", "bfloat16")
        for layout in LAYOUTS[::2]:
            with line.case(f"to few, {laid_out(*layout)}"):
                shrunk(separable, *layout, "cpu", True)
            if separable.enlarges:
                with line.case(f"from few, {laid_out(*layout)}"):
                    enlarged(separable, *layout)
        yield line
    line = Tally("adaptive_max_pool2d", asked, "cpu", "bfloat16")
    for layout in LAYOUTS:
        with line.case(f"to few, {laid_out(*layout)}"):
            adaptive_max(*layout, "cpu", True)
        with line.case(f"from few, {laid_out(*layout)}"):
            adaptive_max_enlarged(*layout)
    yield line
    line = Tally("max_unpool2d", asked, "cpu", "bfloat16")
    for layout in LAYOUTS:
        with line.case(laid_out(*layout)):
            unpooled(*layout)
    yield line
