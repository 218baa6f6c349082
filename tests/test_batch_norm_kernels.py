"""The raw ops of batch norm, launched directly: fused residual and ReLU, the op that is statistics and
application in one, results that must be equal bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G
from fastops import _C
from fastops.backends import DTYPES, launch
from tests import simt
from tests.conftest import device_of
from tests.tolerance import assert_accurate, terms_of_affine

DTYPES_ = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES_, ids=lambda d: str(d)[6:])
every_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
fusions = pytest.mark.parametrize(
    ("relu", "add"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["plain", "relu", "add", "add-relu"],
)

EPS = 1e-3
Shape = tuple[int, ...]
# Shapes, and what they are for. "One channel" and the like are about blocks of csrc/cuda/channelwise.h.
SHAPES: dict[Shape, str] = {
    (1, 2, 1, 3): "three elements for each channel",
    (3, 1, 4, 5): "one channel: both layouts coincide",
    (5, 1, 7, 9): "one channel, no whole vectors",
    (2, 3, 5, 7): "three channels, odd planes; odd rows are not folded",
    (2, 3, 4, 6): "three channels: rows are folded by 2 to 8",
    (2, 5, 7, 11): "primes",
    (4, 8, 3, 3): "8 channels: a vector of 16 bits, two of fp32",
    (3, 96, 2, 2): "channels that are not a power of two of vectors",
    (2, 6, 6, 6): "planes of 4 elements times an odd number",
    (9, 8, 1, 1): "a single position",
    (8, 8, 32, 33): "slabs too large to stay for so few channels; shares of several blocks",
    (5, 6, 41, 43): "the same without whole vectors",
    (70, 3, 8, 8): "blocks that end inside an image",
    (2, 136, 4, 4): "planes stay, a block for each",
    (2, 280, 3, 5): "planes stay, two to a block; rows of 280 channels",
    (2, 1090, 1, 3): "rows stay (fp32, fp64), or have no whole vectors (16 bits)",
    (2, 2176, 2, 1): "rows stay, two groups to a block",
}
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


class Call(NamedTuple):
    """The tensors of one call; the gradient comes from above."""

    x: Tensor
    w: Tensor
    b: Tensor
    residual: Tensor | None
    dy: Tensor
    params: _C.BatchNormParams

    def parameter_dtype(self) -> torch.dtype:
        return self.w.dtype

    def acc(self) -> torch.dtype:
        return torch.promote_types(self.x.dtype, torch.float32)


def make(
    shape: Shape,
    dtype: torch.dtype,
    channels_last: bool,
    backend: str,
    *,
    relu: bool = False,
    add: bool = False,
    training: bool = True,
    wide: bool = False,
) -> Call:
    generator, device = torch.Generator().manual_seed(0), device_of(backend)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def random(*size: int) -> Tensor:
        t = torch.randn(size, generator=generator).to(device, dtype)
        return t.contiguous(memory_format=memory_format) if len(size) == 4 else t

    x, residual, dy = random(*shape) * 2 + 3, random(*shape), random(*shape)
    w, b = random(shape[1]), random(shape[1])
    if wide and dtype.itemsize == 2:
        w, b = w.float() * 1.01, b.float() * 0.99
    params = _C.BatchNormParams(
        dtype=DTYPES[dtype],
        param_dtype=DTYPES[w.dtype],
        channels_last=channels_last or shape[2] * shape[3] == 1,
        n=shape[0],
        c=shape[1],
        in_=(1, *shape[2:]),
        training=training,
        momentum=0.25,
        eps=EPS,
        relu=relu,
    )
    return Call(x, w, b, residual if add else None, dy, params)


def unwritten(like: Tensor) -> Tensor:
    return torch.full_like(like, float("nan"))


class Forward(NamedTuple):
    y: Tensor
    mean: Tensor
    invstd: Tensor
    running_mean: Tensor
    running_var: Tensor


def forward(call: Call) -> Forward:
    c = call.x.shape[1]
    mean, invstd = (call.x.new_full((c,), float("nan"), dtype=call.acc()) for _ in range(2))
    running = [call.w.new_full((c,), 0.5), call.w.new_full((c,), 2.0)]
    y = unwritten(call.x)
    launch("batch_norm", call.params, call.x, call.w, call.b, *running, call.residual, mean, invstd, y)
    return Forward(y, mean, invstd, *running)


def apply(call: Call, mean: Tensor, invstd: Tensor) -> Tensor:
    y = unwritten(call.x)
    launch("batch_norm_apply", call.params, call.x, call.w, call.b, mean, invstd, call.residual, y)
    return y


def backward(call: Call, mean: Tensor, invstd: Tensor, wanted: str = "xwbr") -> dict[str, Tensor]:
    """Gradients of x, w, b and the residual, those wanted."""
    like = {"x": call.x, "w": call.w, "b": call.b, "r": call.x}
    out = {name: unwritten(like[name]) for name in wanted}
    gradients = [out.get(name) for name in "xwbr"]
    tensors = (call.dy, call.x, call.w, call.b, mean, invstd, call.residual, *gradients)
    launch("batch_norm_backward", call.params, *tensors)
    return out


def normalised(x: Tensor, w: Tensor, b: Tensor, running: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """torch's, in whatever dtype the tensors have."""
    return F.batch_norm(x, *(running or (None, None)), w, b, training=running is None, eps=EPS)


def stays(call: Call, backend: str) -> bool:
    """Whether the slabs of the tensor are kept in shared memory."""
    kernels = simt.load().cuda if backend == simt.NAME else _C.cuda
    return kernels.batch_norm_workspace(call.params) == 0


def cut_off(y: Tensor) -> Tensor:
    return y <= 0  # not of NaN


@every_shape
@every_dtype
@every_layout
@fusions
def test_forward(
    shape: Shape, dtype: torch.dtype, channels_last: bool, relu: bool, add: bool, backend: str
) -> None:
    call = make(shape, dtype, channels_last, backend, relu=relu, add=add, wide=add)
    ours = forward(call)

    def reference(to: torch.dtype) -> Tensor:
        w = call.w.to(torch.float64) if to is torch.float64 else call.w
        y = normalised(call.x.to(to), w, call.b.to(w.dtype))
        y = y if call.residual is None else y + call.residual.to(to)
        return y.relu() if relu else y

    assert_accurate(ours.y, reference(dtype), reference(torch.float64), "y")
    flat = call.x.double().transpose(0, 1).flatten(1)
    tolerance = dict(rtol=1e-6, atol=1e-6) if dtype is not torch.float64 else dict(rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(ours.mean.double(), flat.mean(1), **tolerance)
    expected = (flat.var(1, correction=0) + EPS).rsqrt()
    torch.testing.assert_close(ours.invstd.double(), expected, rtol=tolerance["rtol"], atol=0.0)
    near = dict(rtol=16 * torch.finfo(call.w.dtype).eps, atol=0.0)
    expected = 0.75 * 0.5 + 0.25 * flat.mean(1)
    torch.testing.assert_close(ours.running_mean, expected.to(call.w.dtype), **near)
    expected = 0.75 * 2.0 + 0.25 * flat.var(1)
    torch.testing.assert_close(ours.running_var, expected.to(call.w.dtype), **near)
    # However it was made, y is what apply makes of the statistics.
    assert torch.equal(ours.y, apply(call, ours.mean, ours.invstd))
    assert all(torch.equal(a, b) for a, b in zip(ours, forward(call), strict=True))


@every_shape
@every_dtype
@every_layout
@fusions
def test_backward(
    shape: Shape, dtype: torch.dtype, channels_last: bool, relu: bool, add: bool, backend: str
) -> None:
    call = make(shape, dtype, channels_last, backend, relu=relu, add=add, wide=add)
    y, mean, invstd, *_ = forward(call)
    ours = backward(call, mean, invstd)
    # The mask is that of y, and the residual's gradient nothing but dy where it lets through.
    dy = call.dy.masked_fill(cut_off(y), 0) if relu else call.dy
    assert torch.equal(ours["r"], dy)

    def reference(to: torch.dtype) -> tuple[Tensor, ...]:
        w = call.w.to(torch.float64) if to is torch.float64 else call.w
        leaves = [t.detach().cpu().requires_grad_() for t in (call.x.to(to), w, call.b.to(w.dtype))]
        return torch.autograd.grad(normalised(*leaves), leaves, dy.to(to).cpu())

    wide_x, wide_dy = call.x.cpu().double(), dy.cpu().double()
    normal = normalised(wide_x, wide_x.new_ones(shape[1]), wide_x.new_zeros(shape[1]))
    sizes = dict(zip("wb", terms_of_affine(normal, wide_dy), strict=True))
    for name, theirs, exact in zip("xwb", reference(dtype), reference(torch.float64), strict=True):
        assert_accurate(ours[name].cpu(), theirs, exact, f"d{name}", sizes.get(name))
    again = backward(call, mean, invstd)
    assert all(torch.equal(t, again[name]) for name, t in ours.items())


@pytest.mark.parametrize("wanted", ["x", "w", "b", "r", "wb", "xr", "br", ""])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@every_layout
@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (8, 8, 32, 33)], ids=str)
def test_backward_of_what_is_wanted(
    wanted: str, training: bool, relu: bool, channels_last: bool, shape: Shape, backend: str
) -> None:
    call = make(shape, torch.float32, channels_last, backend, relu=relu, add=True, training=training)
    mean, invstd = forward(call)[1:3]
    everything = backward(call, mean, invstd)
    for name, t in backward(call, mean, invstd, wanted).items():
        torch.testing.assert_close(t, everything[name], rtol=1e-5, atol=1e-5)


@every_dtype
@every_layout
@fusions
@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (2, 3, 5, 7), (1, 8, 40, 41)], ids=str)
def test_evaluation(
    shape: Shape, dtype: torch.dtype, channels_last: bool, relu: bool, add: bool, backend: str
) -> None:
    """The statistics are constants: also beside an infinite x, dx is w · invstd · dy."""
    call = make(shape, dtype, channels_last, backend, relu=relu, add=add, training=False)
    call.x[0, 0, 0, 0] = float("inf")
    ours = forward(call)
    assert torch.equal(ours.running_mean, torch.full_like(call.w, 0.5))
    running = (torch.full_like(call.w, 0.5), torch.full_like(call.w, 2.0))
    exact = normalised(call.x.double(), call.w.double(), call.b.double(), tuple(t.double() for t in running))
    theirs = normalised(call.x, call.w, call.b, running)
    if call.residual is not None:
        exact, theirs = exact + call.residual.double(), theirs + call.residual
    if relu:
        exact, theirs = exact.relu(), theirs.relu()
    assert_accurate(ours.y, theirs, exact, "y")
    dx = backward(call, ours.mean, ours.invstd)["x"]
    dy = call.dy.masked_fill(cut_off(ours.y), 0) if relu else call.dy
    exact = dy.double() * (call.w.double() / (2 + EPS) ** 0.5).view(-1, 1, 1)
    assert_accurate(dx, exact.to(dtype), exact, "dx")
    if not relu:  # then x need not be there
        without = unwritten(call.x)
        tensors = (call.w, None, ours.mean, ours.invstd, None, without, None, None, None)
        launch("batch_norm_backward", call.params, call.dy, None, *tensors)
        assert torch.equal(without, dx)


@every_dtype
@every_layout
@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (8, 8, 32, 33)], ids=str)
def test_nan_passes_the_relu(shape: Shape, dtype: torch.dtype, channels_last: bool, backend: str) -> None:
    """And so does its gradient, as torch has it: threshold_backward cuts off where y ≤ 0."""
    call = make(shape, dtype, channels_last, backend, relu=True, add=True)
    assert call.residual is not None
    call.residual[0, 1, 0] = float("nan")
    call.residual[0, 1, 1] = float("inf")
    call.residual[0, 1, 2] = -float("inf")
    y, mean, invstd, *_ = forward(call)
    assert y[0, 1, 0].isnan().all() and (y[0, 1, 1] == float("inf")).all() and (y[0, 1, 2] == 0).all()
    assert y.isnan().sum() == shape[3]
    z = (y * 1.0).requires_grad_()
    (expected,) = torch.autograd.grad(z.relu(), z, call.dy)
    assert torch.equal(backward(call, mean, invstd)["r"], expected)


@every_layout
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 5, 4, 5), (3, 1, 4, 5)], ids=str)
def test_an_infinity_makes_its_weight_gradient_infinite(
    shape: Shape, channels_last: bool, backend: str
) -> None:
    """Lanes that a sum must not count may hold it, too: 0 · ∞ is NaN."""
    x, dy = (torch.rand(shape, generator=torch.Generator().manual_seed(s)) + 0.5 for s in (0, 1))
    x[0, 0].view(-1)[-6:-4] = float("inf")  # among those that a last vector overlaps
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (t.to(device_of(backend)).contiguous(memory_format=memory_format) for t in (x, dy))
    c = shape[1]
    mean, var, b = x.new_zeros(c), x.new_ones(c), x.new_zeros(c)
    w, ddx = x.new_ones(c).requires_grad_(), torch.ones_like(x)
    dy.requires_grad_()
    y = G.batch_norm(x.requires_grad_(), mean, var, w, b)
    dx, dw = torch.autograd.grad(y, [x, w], dy, create_graph=True)
    assert dw[0] == float("inf") and dw[1:].isfinite().all()
    gw, gdy = torch.autograd.grad([dx, dw], [w, dy], [ddx, torch.ones_like(dw)])
    assert gw.isfinite().all() and (~gdy.isfinite()).sum() == 2


@every_dtype
@every_layout
def test_the_mask_is_of_rounded_values(dtype: torch.dtype, channels_last: bool, backend: str) -> None:
    """Sums that nearly cancel: the residual is −z or next to it; 0 is left, or a unit in its last place."""
    call = make((3, 16, 6, 6), dtype, channels_last, backend)
    y, mean, invstd, *_ = forward(call)
    residual = -y
    residual[1] = -torch.nextafter(y[1], y.new_tensor(float("inf")))
    residual[2] = -torch.nextafter(y[2], y.new_tensor(-float("inf")))
    params = make((3, 16, 6, 6), dtype, channels_last, backend, relu=True).params
    call = call._replace(residual=residual, params=params)
    y = apply(call, mean, invstd)
    assert 0 < (y == 0).sum() < y.numel()
    assert torch.equal(backward(call, mean, invstd)["r"], call.dy.masked_fill(cut_off(y), 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@every_layout
@pytest.mark.parametrize("shape", [(3, 16, 6, 6), (8, 8, 32, 33)], ids=str)
def test_the_mask_sees_what_underflows(
    shape: Shape, dtype: torch.dtype, channels_last: bool, backend: str
) -> None:
    """Positive in fp32 and 0 in 16 bits: y is 0, so nothing flows back."""
    call = make(shape, dtype, channels_last, backend, relu=True)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    call.w.fill_(smallest)
    call.b.zero_()
    y, mean, invstd, *_ = forward(call)
    x = call.x.float()
    positive = x > x.mean((0, 2, 3), keepdim=True) + 0.01
    assert (positive & (y == 0)).any() and (y > 0).any()
    assert torch.equal(backward(call, mean, invstd)["r"], call.dy.masked_fill(cut_off(y), 0))


def odd(t: Tensor) -> Tensor:
    """The same values at an address that is no multiple of any vector's size."""
    memory_format = torch.contiguous_format if t.is_contiguous() else torch.channels_last
    place = t.new_full((t.numel() + 1,), float("nan"))[1:]
    like = torch.empty_like(t, memory_format=memory_format)
    return torch.as_strided(place, t.shape, like.stride(), 1).copy_(t)


@every_dtype
@every_layout
@pytest.mark.parametrize(
    "shape", [(2, 6, 6, 6), (2, 16, 4, 4), (5, 8, 32, 32), (2, 136, 4, 4), (2, 1088, 1, 3)], ids=str
)
def test_results_do_not_depend_on_addresses(
    shape: Shape, dtype: torch.dtype, channels_last: bool, backend: str
) -> None:
    call = make(shape, dtype, channels_last, backend, relu=True, add=True)
    moved = call._replace(**{k: odd(getattr(call, k)) for k in ("x", "w", "b", "residual", "dy")})
    first, second = forward(call), forward(moved)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    y = odd(unwritten(call.x))
    launch("batch_norm_apply", call.params, call.x, call.w, call.b, *first[1:3], call.residual, y)
    assert torch.equal(y, first.y)
    for wanted in ("xwbr", "wb"):
        gradients, others = (backward(c, *first[1:3], wanted) for c in (call, moved))
        assert all(torch.equal(t, others[name]) for name, t in gradients.items())
    plain = make(shape, dtype, channels_last, backend).params
    for some in (call, moved):
        stats = [torch.full_like(first.mean, float("nan")) for _ in range(2)]
        launch("batch_norm_stats", plain, some.x, None, None, *stats)
        gx, gdy = (unwritten(some.x) for _ in range(2))
        gw = unwritten(some.w)
        tensors = (*stats, some.w, some.x, some.dy, some.residual, some.w, some.b, gx, gw, gdy)
        launch("batch_norm_double_backward", plain, *tensors)
        results = [*stats, gx, gw, gdy]
        if some is call:
            expected = results
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(results, expected, strict=True))


@every_layout
@pytest.mark.parametrize("shape", [(3, 8, 6, 6), (8, 8, 32, 33), (2, 3, 24, 24), (2, 544, 3, 3)], ids=str)
def test_a_mean_far_from_zero(shape: Shape, channels_last: bool, backend: str) -> None:
    """A deviation of 1/100 at 1000, where fp32 has some 160 steps for it; the first element is far away."""
    call = make(shape, torch.float32, channels_last, backend)
    call.x.copy_((call.x - 3) / 200 + 1000)
    call.x[:, ::2] -= 2000
    exact = call.x.double().transpose(0, 1).flatten(1)
    ours = forward(call)
    torch.testing.assert_close(ours.mean.double(), exact.mean(1), rtol=6e-8, atol=0.0)
    expected = (exact.var(1, correction=0) + EPS).rsqrt()
    torch.testing.assert_close(ours.invstd.double(), expected, rtol=1e-6, atol=0.0)
    call.x[0, :, 0, 0] = 0
    exact = call.x.double().transpose(0, 1).flatten(1)
    expected = (exact.var(1, correction=0) + EPS).rsqrt()
    torch.testing.assert_close(forward(call).invstd.double(), expected, rtol=1e-5, atol=0.0)


@every_layout
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_empty(shape: Shape, channels_last: bool, training: bool, backend: str) -> None:
    call = make(shape, torch.float32, channels_last, backend, relu=True, add=True, training=training)
    ours = forward(call)
    assert torch.equal(ours.running_mean, torch.full_like(ours.running_mean, 0.5))
    torch.testing.assert_close(ours.invstd, torch.full_like(ours.invstd, (2 + EPS) ** -0.5))
    gradients = backward(call, *ours[1:3])
    assert torch.equal(gradients["w"], torch.zeros_like(call.w))
    assert torch.equal(gradients["b"], torch.zeros_like(call.b))


def test_both_ways_are_taken(backend: str) -> None:
    """Some shapes stay in shared memory and others do not, in each dtype and layout."""
    if not backend.startswith("cuda"):
        pytest.skip("there is one way on the CPU")
    for dtype in DTYPES_:
        for channels_last in (False, True):
            ways = {stays(make(shape, dtype, channels_last, backend), backend) for shape in SHAPES}
            assert ways == {True, False}
    for shape, expected in {
        (8, 256, 28, 28): True,
        (256, 64, 112, 112): False,
        (32, 64, 56, 56): False,
    }.items():
        x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        params = make((1, 1, 1, 1), torch.bfloat16, False, backend).params
        params.channels_last = False
        params.n, params.c, params.in_ = x.shape[0], x.shape[1], (1, *x.shape[2:])
        kernels = simt.load().cuda if backend == simt.NAME else _C.cuda
        assert (kernels.batch_norm_workspace(params) == 0) == expected


@pytest.mark.skipif(simt.why_unavailable() is not None, reason=str(simt.why_unavailable()))
def test_nothing_wanted_costs_nothing() -> None:
    """Of the second derivative: the sums were made all the same, of 2^40 images that nobody gave too."""
    kernels = simt.load().cuda
    params = _C.BatchNormParams(
        dtype=_C.DType.f16, param_dtype=_C.DType.f32, n=2**40, c=2, in_=(1, 2, 3), training=True
    )
    vectors = torch.ones(2), torch.ones(2)
    workspace = torch.empty(kernels.batch_norm_double_backward_workspace(params), dtype=torch.uint8)
    addresses = [t.data_ptr() for t in vectors] + [0] * 9
    kernels.batch_norm_double_backward(params, *addresses, workspace.data_ptr(), 0)
