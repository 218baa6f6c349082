"""What the table of cases cannot say of pooling: rules for NaN, ties and duplicates, adjoints, safety."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import fastops
import fastops.functional as G
from fastops import _C
from fastops.backends import NUMBERS_TAPS, launch
from fastops.ops import layout, max_pool, pool
from tests.cases import JUDGED, TORCH_VERSION

every_layout = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
NAN, INF = float("nan"), float("inf")


def window_maximum(values: list[float]) -> int:
    """The place that max pooling reports: the first of equal maxima, the last NaN."""
    nans = [i for i, v in enumerate(values) if v != v]
    return nans[-1] if nans else values.index(max(values))


@every_layout
@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0, 1.0],
        [0.0, 2.0, 2.0, 1.0],
        [NAN, 1.0, 2.0, 3.0],
        [1.0, NAN, NAN, INF],
        [NAN, NAN, NAN, NAN],
        [-INF, -INF, -INF, -INF],
        [-INF, -INF, -INF, -3.0],
        [-0.0, 0.0, -0.0, 0.0],
    ],
    ids=str,
)
def test_which_maximum(
    values: list[float], memory_format: torch.memory_format, backend: str, device: str
) -> None:
    """The same window at every place of planes of several sizes, so that every loop meets it."""
    place = window_maximum(values)
    for width in (1, 3, 8, 37):
        tile = (
            torch.tensor(values, device=device)
            .view(1, 1, 2, 2)
            .repeat(1, 9, 3, width)
            .contiguous(memory_format=memory_format)
        )
        for function, options in ((G.max_pool2d, (2,)), (G.adaptive_max_pool2d, ((3, width),))):
            y, indices = function(tile, *options, return_indices=True)
            row, column = torch.meshgrid(
                torch.arange(3, device=device), torch.arange(width, device=device), indexing="ij"
            )
            expected = (2 * row + place // 2) * 2 * width + 2 * column + place % 2
            assert torch.equal(indices, expected.expand_as(indices))
            assert torch.equal(y.nan_to_num(7), torch.full_like(y, values[place]).nan_to_num(7))
            assert torch.equal(function(tile, *options).nan_to_num(7), y.nan_to_num(7))


@every_layout
def test_all_minus_infinity_at_the_edge(
    memory_format: torch.memory_format, backend: str, device: str
) -> None:
    """With padding the position is that of the first element inside the input."""
    x = torch.full((1, 3, 4, 4), -INF, device=device).contiguous(memory_format=memory_format)
    _, indices = G.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert indices[0, 0].tolist() == [[0, 1], [4, 5]]


@every_layout
def test_window_without_elements(memory_format: torch.memory_format, backend: str, device: str) -> None:
    """Dilation can step over a small input: -inf at no position, and no gradient."""
    x = torch.ones(1, 3, 1, 1, device=device).contiguous(memory_format=memory_format).requires_grad_()
    y, indices = G.max_pool2d(x, 2, 1, 1, 2, return_indices=True)
    assert y.flatten().tolist() == [-INF] * 3 and indices.flatten().tolist() == [-1] * 3
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    assert not dx.any()


def test_no_positions_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(op: str, params: Any, *tensors: Tensor | None) -> None:
        seen.append((op, tensors[-1] is None))
        launch(op, params, *tensors)

    monkeypatch.setattr(max_pool, "launch", spy)
    x = torch.randn(1, 2, 6, 6)
    G.max_pool2d(x, 2)
    G.max_pool2d(x.requires_grad_(), 2)
    with torch.no_grad():
        G.max_pool2d(torch.randn(1, 2, 6, 7, requires_grad=True), 2)
    assert seen == [("max_pool", True), ("max_pool", False), ("max_pool", True)]


# ---- adjoints -----------------------------------------------------------------------------------


def assert_adjoint(y: Tensor, dy: Tensor, x: Tensor, dx: Tensor) -> None:
    """<A x, dy> = <x, A* dy>"""
    torch.testing.assert_close((y * dy).sum(), (x * dx).sum(), rtol=1e-10, atol=1e-10)


SPECS = [
    max_pool.MaxPoolSpec((2, 2), (2, 2), (0, 0), (1, 1), False),
    max_pool.MaxPoolSpec((3, 3), (2, 2), (1, 1), (1, 1), True),
    max_pool.MaxPoolSpec((3, 2), (1, 3), (1, 0), (2, 3), False),
    max_pool.MaxPoolSpec((7, 7), (1, 1), (3, 3), (1, 1), False),
    pool.AdaptiveSpec((5, 4)),
    pool.AdaptiveSpec((1, 1)),
    pool.AdaptiveSpec((20, 3)),
]


@every_layout
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32, torch.uint8], ids=["i64", "i32", "u8"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gather_and_scatter_add(
    spec: Any, index_dtype: torch.dtype, memory_format: torch.memory_format, backend: str, device: str
) -> None:
    if index_dtype is torch.uint8 and (
        backend not in NUMBERS_TAPS or max_pool.narrowest(spec, 13, 17, True) is not torch.uint8
    ):
        pytest.skip("the backend, or the window, has no numbers of taps in a byte")
    x = torch.randn(2, 11, 13, 17, dtype=torch.float64, device=device).contiguous(memory_format=memory_format)
    y, positions = max_pool.MaxPool.forward(x, spec, str(index_dtype)[6:])
    assert positions is not None and positions.dtype == index_dtype
    assert torch.equal(max_pool.Gather.forward(x, positions, spec, memory_format), y)
    dy, other = torch.randn_like(y), torch.randn_like(x)
    dx = max_pool.ScatterAdd.forward(dy, positions, spec, x.shape, memory_format)
    if index_dtype is torch.uint8:  # numbers of taps: see whether they mean these positions
        positions = max_pool.MaxPool.forward(x, spec, max_pool.INT64)[1]
        assert positions is not None
    assert_adjoint(max_pool.Gather.forward(other, positions, spec, memory_format), dy, other, dx)
    expected = torch.zeros(2, 11, 13 * 17, dtype=torch.float64, device=device)
    expected.scatter_add_(2, positions.long().flatten(2), dy.flatten(2))
    torch.testing.assert_close(dx.flatten(2), expected)


@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", range(1, 9))
def test_scatter_add_of_every_small_window(
    kernel: int,
    stride: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    backend: str,
    device: str,
) -> None:
    """Rows of one window to rows of more than two vectors, every padding; few different values, so that
    windows share maxima. All sums are exact."""
    for width, padding in itertools.product((kernel, kernel + 1, 45), range(kernel // 2 + 1)):
        spec = max_pool.MaxPoolSpec((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1), False)
        g = torch.Generator().manual_seed(width)
        x = torch.randint(4, (2, 3, kernel + 2, width), generator=g).to(device, dtype)
        x = x.contiguous(memory_format=memory_format)
        y, positions = max_pool.MaxPool.forward(x, spec, max_pool.INT64)
        assert positions is not None
        dy = torch.randint(-2, 3, y.shape, generator=g).to(device, dtype)
        dx = max_pool.ScatterAdd.forward(dy, positions, spec, x.shape, memory_format)
        expected = torch.zeros(2, 3, x[0, 0].numel(), dtype=dtype, device=device)
        expected.scatter_add_(2, positions.flatten(2), dy.flatten(2))
        assert torch.equal(dx.flatten(2), expected), (width, padding)


@every_layout
@pytest.mark.parametrize(
    "spec",
    [
        pool.AvgPoolSpec((3, 3), (2, 2), (1, 1), True, False, None),
        pool.AvgPoolSpec((9, 9), (1, 1), (4, 4), False, True, None),
        pool.AvgPoolSpec((2, 3), (3, 1), (0, 1), False, True, 5),
        pool.AdaptiveSpec((5, 4)),
        pool.AdaptiveSpec((1, 1)),
        pool.AdaptiveSpec((20, 3)),
    ],
    ids=str,
)
def test_avg_pool_and_adjoint(
    spec: Any, memory_format: torch.memory_format, backend: str, device: str
) -> None:
    x = torch.randn(2, 11, 13, 17, dtype=torch.float64, device=device).contiguous(memory_format=memory_format)
    y = pool.AvgPool.forward(x, spec)
    dy = torch.randn_like(y)
    assert_adjoint(y, dy, x, pool.AvgPoolAdjoint.forward(dy, spec, x.shape, memory_format))


@every_layout
@pytest.mark.parametrize("size", [(64, 257), (129, 131)], ids=str)
def test_average_of_a_constant(
    size: tuple[int, int], memory_format: torch.memory_format, backend: str, device: str
) -> None:
    """One long sum would round every addition the same way: ten units in the last place here, or thirty."""
    x = torch.full((2, 3, *size), 1e7 / 3).to(device).contiguous(memory_format=memory_format)
    y = G.adaptive_avg_pool2d(x, 1)
    assert ((y / x[0, 0, 0, 0] - 1).abs() < 5 * torch.finfo(torch.float32).eps).all()


@every_layout
def test_third_order(memory_format: torch.memory_format, backend: str, device: str) -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, device=device)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    indices = torch.randperm(256, device=device)[:64].view(1, 1, 8, 8).expand(1, 3, 8, 8)
    for y in (
        G.max_pool2d(x, 3, 2, 1),
        G.adaptive_max_pool2d(x, 3),
        G.avg_pool2d(x, 3, 2, 1),
        G.max_unpool2d(x, indices, 2),
    ):
        value = (y**4).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = (gradient**2).sum()
        assert gradient.isfinite().all()


# ---- unpooling ----------------------------------------------------------------------------------


@every_layout
@pytest.mark.parametrize("shape", [(1, 1, 9, 9), (2, 5, 9, 9), (1, 150, 9, 9)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_duplicates(
    shape: tuple[int, ...],
    count: int,
    memory_format: torch.memory_format,
    backend: str,
    device: str,
    threads: None,
) -> None:
    """The last in raster order wins, on any number of threads; the losers' gradient is zero."""
    torch.set_num_threads(count)
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, memory_format=memory_format)
    indices = torch.randint(0, 40, shape, generator=generator).to(device, memory_format=memory_format)
    y = G.max_unpool2d(x.requires_grad_(), indices, 2)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(device)
    (dx,) = torch.autograd.grad(y, x, dy)
    expected = torch.zeros(n, c, 4 * h * w, dtype=torch.float64, device=device)
    expected_dx = torch.zeros(n, c, h * w, dtype=torch.float64, device=device)
    values, where, gradients = x.detach().flatten(2), indices.flatten(2), dy.flatten(2)
    for i in range(h * w):
        expected.scatter_(2, where[..., i : i + 1], values[..., i : i + 1])
        expected_dx.masked_fill_(where == where[..., i : i + 1], 0)
        expected_dx[..., i : i + 1] = gradients.gather(2, where[..., i : i + 1])
    assert torch.equal(y.detach().flatten(2), expected)
    assert torch.equal(dx.flatten(2), expected_dx)
    assert_adjoint(y.detach(), dy, x.detach(), dx)


@every_layout
@pytest.mark.parametrize("bad", [-1, 36, 2**31, -(2**63), 2**63 - 1])
def test_index_out_of_range(bad: int, memory_format: torch.memory_format, backend: str, device: str) -> None:
    """Raises, and the value with the bad index goes nowhere: all else is as if it were not there."""
    x = torch.randn(2, 5, 3, 3, device=device).contiguous(memory_format=memory_format)
    indices = torch.zeros(x.shape, dtype=torch.int64, device=device).contiguous(memory_format=memory_format)
    indices[1, 4, 2, 2] = bad
    with pytest.raises(RuntimeError, match="index"):
        G.max_unpool2d(x, indices, 2)
        torch.cuda.synchronize()  # on a GPU the next call says it
        G.max_unpool2d(x, indices, 2)
    params, shape = max_pool.unpool_plan(x.shape, (6, 6), x.dtype, memory_format is layout.CHANNELS_LAST)
    y = torch.full(shape, 7.0, device=device).contiguous(memory_format=memory_format)
    with pytest.raises(RuntimeError, match="index"):
        launch("max_unpool", params, x, indices, y)
        torch.cuda.synchronize()
        launch("max_unpool", params, x, indices, y)
    expected = torch.zeros_like(y)
    expected[:, :, 0, 0] = x[:, :, 2, 2]
    expected[1, 4, 0, 0] = x[1, 4, 2, 1]
    assert torch.equal(y, expected)


@every_layout
@pytest.mark.parametrize(
    ("size", "out", "local"),
    [
        ((40, 41), (90, 91), False),  # a chunk of 8192 outputs and a part of one
        ((64, 64), (128, 128), True),  # two whole ones, indices as from pooling: each needs half of them
        ((9, 9), (523, 509), False),  # more chunks than are worth it
        ((40, 41), (7, 9), False),  # many duplicates
    ],
    ids=str,
)
def test_large_planes(
    size: tuple[int, int],
    out: tuple[int, int],
    local: bool,
    memory_format: torch.memory_format,
    backend: str,
    device: str,
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, *size)
    x = torch.randn(shape, generator=generator).to(device, memory_format=memory_format)
    if local:
        _, indices = torch.nn.functional.max_pool2d(torch.randn(2, 3, *out), 2, return_indices=True)
    else:
        indices = torch.randint(0, out[0] * out[1], shape, generator=generator)
    indices = indices.to(device, memory_format=memory_format)
    params, y_shape = max_pool.unpool_plan(shape, out, x.dtype, memory_format is layout.CHANNELS_LAST)
    y = torch.full(y_shape, 7.0, device=device).contiguous(memory_format=memory_format)
    launch("max_unpool", params, x, indices, y)
    winner = torch.full((6, out[0] * out[1]), -1, device=device)
    numbers = torch.arange(size[0] * size[1], device=device).expand(6, -1)
    winner.scatter_reduce_(1, indices.reshape(6, -1), numbers, "amax")
    expected = torch.where(winner < 0, 0, x.reshape(6, -1).gather(1, winner.clamp(min=0)))
    assert torch.equal(y.reshape(6, -1), expected)
    dy, dx = torch.randn_like(y), torch.full_like(x, 7.0)
    launch("max_unpool_adjoint", params, dy, indices, dx)
    won = winner.gather(1, indices.reshape(6, -1)) == numbers
    expected = torch.where(won, dy.reshape(6, -1).gather(1, indices.reshape(6, -1)), 0)
    assert torch.equal(dx.reshape(6, -1), expected)


def test_scratch_is_a_bit_per_output() -> None:
    params = dict(dtype=_C.DType.f32, n=2, c=9, in_=(1, 2, 2), out=(1, 10, 13))
    assert _C.cpu_baseline.max_unpool_adjoint_workspace(_C.UnpoolParams(**params), 1) == 2 * 9 * 3 * 8
    assert (
        _C.cpu_baseline.max_unpool_adjoint_workspace(_C.UnpoolParams(channels_last=True, **params), 1)
        == 2 * 130 * 2
    )


# ---- errors -------------------------------------------------------------------------------------

X = torch.zeros(1, 2, 4, 4)
I = torch.zeros(1, 2, 4, 4, dtype=torch.int64)  # noqa: E741


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "error"),
    [
        ("max_pool2d", (X, 2, 0), {}, RuntimeError),
        ("max_pool2d", (X, 0), {}, RuntimeError),
        ("max_pool2d", (X, 2, 2, 2), {}, RuntimeError),
        ("max_pool2d", (X, 2, 2, -1), {}, RuntimeError),
        ("max_pool2d", (X, 2), dict(dilation=0), RuntimeError),
        ("max_pool2d", (X, 9), {}, RuntimeError),
        ("max_pool2d", (X, 1.5), {}, TypeError),
        ("max_pool2d", (X, (1, 2, 3)), {}, RuntimeError),
        ("max_pool2d", (X[:, :0], 2), {}, RuntimeError),
        ("max_pool2d", (X[0, 0], 2), {}, RuntimeError),
        ("max_pool2d", (X > 0, 2), {}, NotImplementedError),
        ("adaptive_max_pool2d", (X, -1), {}, RuntimeError),
        ("adaptive_max_pool2d", (X, 1.5), {}, TypeError),
        ("adaptive_max_pool2d", (X[:, :0], 2), {}, RuntimeError),
        ("adaptive_max_pool2d", (X.long(), 2), {}, NotImplementedError),
        ("max_unpool2d", (X, I[:, :1], 2), {}, RuntimeError),
        ("max_unpool2d", (X, I.int(), 2), {}, RuntimeError),
        ("max_unpool2d", (X, I, 2), dict(output_size=(5, 5)), ValueError),
        ("max_unpool2d", (X, I, 2), dict(output_size=(7, 7, 7)), ValueError),
        ("max_unpool2d", (X, I, 2, 1, 5), {}, ValueError),
        ("max_unpool2d", (X[:, :0], I[:, :0], 2), {}, RuntimeError),
        ("max_unpool2d", (X[0, 0], I[0, 0], 2), {}, RuntimeError),
        ("max_unpool2d", (X, I, 2), dict(output_size=8), TypeError),
        ("max_unpool2d", (X.long(), I, 2), {}, NotImplementedError),
    ],
)
def test_errors(function: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception]) -> None:
    for module in (torch.nn.functional, G) if TORCH_VERSION == JUDGED else (G,):
        with pytest.raises(error):
            getattr(module, function)(*args, **kwargs)


@every_layout
def test_modules(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=memory_format)
    for name, options in (
        ("MaxPool2d", dict(kernel_size=3, stride=2, padding=1, ceil_mode=True, return_indices=True)),
        ("MaxPool2d", dict(kernel_size=2)),
        ("AdaptiveMaxPool2d", dict(output_size=(3, None), return_indices=True)),
    ):
        ours, theirs = getattr(fastops, name)(**options), getattr(torch.nn, name)(**options)
        assert repr(ours) == repr(theirs)
        a, b = ours(x), theirs(x)
        for o, t in zip(*(r if isinstance(r, tuple) else (r,) for r in (a, b)), strict=True):
            assert torch.equal(o, t) and o.stride() == t.stride()
    y, indices = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    unpool, theirs = fastops.MaxUnpool2d(2), torch.nn.MaxUnpool2d(2)
    assert repr(unpool) == repr(theirs)
    assert torch.equal(unpool(y, indices), theirs(y, indices))
    assert torch.equal(unpool(y, indices, output_size=x.shape), theirs(y, indices, output_size=x.shape))


@every_layout
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: G.avg_pool2d(x, 2),
        lambda x: G.avg_pool2d(x, 3, 2, 1),
        lambda x: G.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        lambda x: G.adaptive_avg_pool2d(x, 1),
        lambda x: G.max_pool2d(x, 2),
        lambda x: G.max_pool2d(x, 3, 2, 1),
        lambda x: G.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
        lambda x: G.max_pool2d(x, 3, 1, 1, return_indices=True)[1],
    ],
    ids=["avg-2", "avg-halved", "avg-neighbours", "global", "max-2", "max", "max-indices", "indices"],
)
def test_whole_vectors_at_odd_addresses(
    function: Any, dtype: torch.dtype, memory_format: torch.memory_format, backend: str, device: str
) -> None:
    """16 channels, rows of 48: would be read 16 bytes at a time, but begin in the middle of such 16 bytes.

    The results are the same, bit for bit.
    """
    if memory_format is torch.channels_last:
        shape, order, back = (2, 16, 9, 7), (0, 2, 3, 1), (0, 3, 1, 2)
    else:
        shape, order, back = (2, 2, 9, 48), (0, 1, 2, 3), (0, 1, 2, 3)

    def odd(t: Tensor) -> Tensor:
        flat = t.permute(order).reshape(-1)
        place = torch.empty(flat.numel() + 1, dtype=dtype, device=device)[1:]
        return place.copy_(flat).view(t.permute(order).shape).permute(back)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype, memory_format=memory_format)
    a, b = x.clone().requires_grad_(), odd(x).requires_grad_()
    y, z = function(a), function(b)
    assert torch.equal(y, z)
    if not y.requires_grad:
        return
    dy = torch.randn(y.shape, generator=generator).to(device, dtype, memory_format=memory_format)
    y.backward(dy)
    z.backward(odd(dy))
    assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)
