"""Batch norm with a residual and a ReLU, beyond what the cases say: the mask, what is kept, the layer."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastops
import fastops.functional as G
from fastops.ops import batch_norm as ops
from tests.conftest import device_of
from tests.tolerance import assert_same_layout

every_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
every_mode = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
SHAPE = (3, 5, 11, 7)


def randn(*shape: int, seed: int = 0, channels_last: bool = False, **options: Any) -> Tensor:
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**options)
    return t.contiguous(memory_format=torch.channels_last) if channels_last else t


def composition(
    x: Tensor, *parameters: Any, residual: Tensor | None = None, activation: Any = None, **options: Any
) -> Tensor:
    """The same in torch."""
    y = F.batch_norm(x, *parameters, **options)
    y = y if residual is None else y + residual
    return y if activation is None else F.relu(y)


# ---- where dy counts ----------------------------------------------------------------------------


@every_layout
@every_mode
@pytest.mark.parametrize("shape", [SHAPE, (2, 300, 3, 3), (2, 3, 50, 60)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_mask_is_that_of_the_output(
    dtype: torch.dtype, shape: tuple[int, ...], training: bool, channels_last: bool, backend: str
) -> None:
    """The residual cancels the rest up to a rounding or two, so that any other expression than the
    forward's would let other elements through."""
    options = dict(channels_last=channels_last, device=device_of(backend), dtype=dtype)
    x = randn(*shape, **options)
    c = shape[1]
    w, b = (randn(c, seed=s, device=x.device, dtype=dtype) for s in (1, 2))
    mean, var = randn(c, seed=3, device=x.device, dtype=dtype), torch.ones_like(w)

    def run(residual: Tensor | None, activation: str | None) -> Tensor:
        statistics = mean.clone(), var.clone()
        return G.batch_norm(x, *statistics, w, b, training, residual=residual, activation=activation)

    residual = run(None, None).neg()
    up, down = (torch.full_like(residual, v) for v in (math.inf, -math.inf))
    step = torch.arange(residual.numel(), device=x.device).view(shape) % 3
    if dtype.itemsize > 2:  # torch.nextafter knows no 16-bit types; there the cancellation is rough anyway
        residual = residual.where(step == 0, residual.nextafter(up.where(step == 1, down)))
    residual.requires_grad_()
    y = run(residual, "relu")
    dy = randn(*shape, seed=4, **options)
    (dresidual,) = torch.autograd.grad(y, residual, dy)
    assert torch.equal(dresidual, dy.masked_fill(y <= 0, 0))
    assert 0.05 < (y > 0).float().mean() < 0.95


@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.float16, 2.0**-24), (torch.bfloat16, 2.0**-133)], ids=["fp16", "bf16"]
)
def test_what_rounds_to_zero_is_zero(dtype: torch.dtype, unit: float, backend: str) -> None:
    """z is positive in fp32, but half the dtype's smallest number or less: y is 0, and so is the gradient."""
    device = device_of(backend)
    x = torch.tensor([-1.0, 0.0, 0.25, 1.0, 1.0078125, 1.5, 2.0, 3.0], dtype=dtype, device=device)
    x = x.repeat(4).view(2, 1, 4, 4)
    w = torch.full((1,), unit / 2, device=device)
    residual = torch.zeros_like(x).requires_grad_()
    y = G.batch_norm(x, w.new_zeros(1), w.new_ones(1), w, eps=0.0, residual=residual, activation="relu")
    expected = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2], dtype=torch.float64).repeat(4).view(2, 1, 4, 4) * unit
    assert torch.equal(y.cpu().double(), expected)
    (dresidual,) = torch.autograd.grad(y, residual, torch.ones_like(y))
    assert torch.equal(dresidual, (y > 0).to(dtype))


@every_layout
def test_nan_and_infinities(channels_last: bool, backend: str) -> None:
    """A ReLU keeps NaN, and lets dy through there: as torch's does."""
    options = dict(channels_last=channels_last, device=device_of(backend))
    x, residual, dy = (randn(2, 3, 4, 5, seed=s, **options) for s in range(3))
    for i, value in enumerate((math.nan, math.inf, -math.inf, 0.0)):
        x[0, :, i, ::2] = value
        residual[1, :, i, 1::2] = value
    mean, var = x.new_zeros(3), x.new_ones(3)
    results = []
    for function in (composition, G.batch_norm):
        leaf = residual.clone().requires_grad_()
        y = function(x, mean, var, residual=leaf, activation="relu")
        results.append((y.detach(), torch.autograd.grad(y, leaf, dy)[0]))
    (y, dz), (expected_y, expected_dz) = results[1], results[0]
    torch.testing.assert_close(y, expected_y, equal_nan=True)
    assert torch.equal(dz, expected_dz) and (dz[y.isnan()] == dy[y.isnan()]).all()


# ---- graphs of the backward ---------------------------------------------------------------------


@every_layout
@every_mode
@pytest.mark.parametrize("with_residual", [False, True])
def test_fused_and_composed_backward_agree(with_residual: bool, training: bool, channels_last: bool) -> None:
    """create_graph=True makes two ops of the one."""
    options = dict(channels_last=channels_last, dtype=torch.double)
    x, residual = (randn(*SHAPE, seed=s, **options).requires_grad_() for s in (0, 1))
    w, b = (randn(5, seed=s, dtype=torch.double).requires_grad_() for s in (2, 3))
    added = residual if with_residual else None
    leaves = [x, w, b, *([residual] if with_residual else [])]
    y = G.batch_norm(x, w.new_zeros(5), w.new_ones(5), w, b, training, residual=added, activation="relu")
    dy = randn(*SHAPE, seed=4, dtype=torch.double)
    fused = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    composed = torch.autograd.grad(y, leaves, dy, create_graph=True)
    for a, c, leaf in zip(fused, composed, leaves, strict=True):
        torch.testing.assert_close(a, c)
        assert c.requires_grad or leaf is residual or leaf is b or not training
        assert_same_layout(a, leaf), assert_same_layout(c, leaf)


@every_mode
def test_torch_func(training: bool) -> None:
    x, residual, t, s = (randn(2, 3, 4, 5, seed=s, dtype=torch.double) for s in range(4))
    w, b = (randn(3, seed=s, dtype=torch.double) for s in (4, 5))
    mean, var = w.new_zeros(3), w.new_ones(3)

    def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def of(x: Tensor, w: Tensor, residual: Tensor) -> Tensor:
            more = dict(residual=residual, activation="relu")
            return function(x, mean.clone(), var.clone(), w, b, training, **more).sin().sum()

        return of

    ours, theirs = loss(G.batch_norm), loss(composition)
    arguments, everything = (x, w, residual), (0, 1, 2)
    for a, e in zip(
        torch.func.grad(ours, everything)(*arguments),
        torch.func.grad(theirs, everything)(*arguments),
        strict=True,
    ):
        torch.testing.assert_close(a, e)
    tangents = (t, w.flip(0), s)
    for a, e in zip(
        torch.func.jvp(ours, arguments, tangents), torch.func.jvp(theirs, arguments, tangents), strict=True
    ):
        torch.testing.assert_close(a, e)
    second = torch.func.grad(lambda x: torch.func.grad(ours)(x, w, residual).pow(2).sum())(x)
    expected = torch.func.grad(lambda x: torch.func.grad(theirs)(x, w, residual).pow(2).sum())(x)
    torch.testing.assert_close(second, expected)


def test_third_order_is_refused() -> None:
    x = randn(2, 3, 4, dtype=torch.double).requires_grad_()
    y = G.batch_norm(x, None, None, training=True, activation="relu").pow(3).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third order"):
        torch.autograd.grad(second.sum(), x)


# ---- what it costs ------------------------------------------------------------------------------


def saved(function: Callable[[], Tensor]) -> tuple[Tensor, list[int]]:
    """The result, and the addresses of the large tensors that its backward keeps."""
    kept = []

    def pack(t: Tensor) -> Tensor:
        if t.numel() > 1000:
            kept.append(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        return function(), kept


@every_mode
def test_no_mask_is_kept(training: bool) -> None:
    """x, and with a ReLU the residual; neither y nor a mask."""
    x, residual = (randn(4, 5, 20, 20, seed=s).requires_grad_() for s in (0, 1))
    mean, var, w = torch.zeros(5), torch.ones(5), torch.ones(5, requires_grad=True)
    for added, activation, expected in (
        (None, "relu", [x]),
        (residual, "relu", [x, residual]),
        (residual, None, [x]),
        (None, None, [x]),
    ):
        y, kept = saved(
            lambda added=added, activation=activation: G.batch_norm(  # type: ignore[misc]
                x, mean, var, w, None, training, residual=added, activation=activation
            )
        )
        assert kept == [t.data_ptr() for t in expected]
        del y


@every_mode
def test_one_launch_each_way(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    launch = ops.launch

    def note(op: str, *rest: Any) -> None:
        launched.append(op)
        launch(op, *rest)

    monkeypatch.setattr(ops, "launch", note)
    x, residual = (randn(2, 3, 4, 5, seed=s).requires_grad_() for s in (0, 1))
    w = torch.ones(3, requires_grad=True)
    statistics = torch.zeros(3), torch.ones(3)
    G.batch_norm(x, *statistics, w, w, training, residual=residual, activation="relu").sum().backward()
    assert launched == ["batch_norm", "batch_norm_backward"]
    launched.clear()
    G.batch_norm(x.detach(), *statistics, residual=residual, training=training).sum().backward()
    assert launched == ["batch_norm"], "dy itself is the residual's gradient"


@every_layout
@every_mode
@pytest.mark.parametrize("shape", [SHAPE, (2, 300, 3, 3)], ids=str)
def test_two_launches_give_the_same(
    shape: tuple[int, ...], training: bool, channels_last: bool, backend: str
) -> None:
    """batch_norm is batch_norm_stats and batch_norm_apply: on the CPU bit for bit; on a GPU it may read x
    once, and sums in another order then."""
    x, residual = (
        randn(*shape, seed=s, channels_last=channels_last, device=device_of(backend)) for s in (0, 1)
    )
    w, b = (randn(shape[1], seed=s, device=x.device) for s in (2, 3))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    spec = ops.BatchNormSpec(training, 0.3, 1e-3, True, x.dtype, memory_format)
    params = ops.batch_norm_params(spec, shape, x.dtype)
    results = []
    for combined in (True, False):
        running = w.new_zeros(shape[1]), w.new_ones(shape[1])
        mean, invstd, y = torch.empty_like(w), torch.empty_like(w), torch.empty_like(x)
        if combined:
            ops.launch("batch_norm", params, x, w, b, *running, residual, mean, invstd, y)
        else:
            ops.launch("batch_norm_stats", params, x, *running, mean, invstd)
            ops.launch("batch_norm_apply", params, x, w, b, mean, invstd, residual, y)
        results.append([y, mean, invstd, *running])
    for one, two in zip(*results, strict=True):
        if backend.startswith("cuda"):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(one, two)


# ---- layouts ------------------------------------------------------------------------------------


@every_layout
@pytest.mark.parametrize("activation", [None, "relu"])
def test_residual_of_another_layout(activation: str | None, channels_last: bool, backend: str) -> None:
    """The result has the input's layout, and the residual's gradient the residual's."""
    x = randn(*SHAPE, channels_last=channels_last, device=device_of(backend))
    other = randn(*SHAPE, seed=1, channels_last=not channels_last, device=device_of(backend))
    wide = x.new_empty(*SHAPE[:3], 2 * SHAPE[3])[..., ::2].copy_(other)
    dy = randn(*SHAPE, seed=2, device=device_of(backend))
    mean, var = x.new_zeros(5), x.new_ones(5)
    expected = None
    for residual in (other, wide):
        residual.requires_grad_()
        y = G.batch_norm(x, mean, var, residual=residual, activation=activation)
        assert y.stride() == x.stride()
        (dresidual,) = torch.autograd.grad(y, residual, dy)
        expected = expected or (y, dresidual)
        assert torch.equal(y, expected[0]) and torch.equal(dresidual, expected[1])
        if residual is other:
            assert dresidual.stride() == other.stride()


# ---- the layer ----------------------------------------------------------------------------------


def residual_block(lib: Any, fused: bool) -> nn.Module:
    """conv → bn → relu → conv → bn, plus x, relu."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            relu = dict(activation="relu") if fused else {}
            self.conv1, self.conv2 = (lib.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
            self.bn1, self.bn2 = lib.BatchNorm2d(4, **relu), lib.BatchNorm2d(4, **relu)

        def forward(self, x: Tensor) -> Tensor:
            if fused:
                return self.bn2(self.conv2(self.bn1(self.conv1(x))), x)
            return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)

    return Block()


def test_residual_block_follows_torch() -> None:
    theirs, ours = residual_block(nn, fused=False), residual_block(fastops, fused=True)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    for step in range(3):
        theirs.train(step < 2), ours.train(step < 2)
        x = randn(4, 4, 8, 8, seed=step)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = ours(a), theirs(b)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        y.square().sum().backward(), expected.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-3)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


def test_layer_says_its_activation() -> None:
    plain, fused = fastops.BatchNorm2d(3), fastops.BatchNorm2d(3, activation="relu")
    assert repr(plain) == repr(nn.BatchNorm2d(3))
    assert repr(fused) == repr(plain)[:-1] + ", activation='relu')"
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert fused.state_dict()._metadata == nn.BatchNorm2d(3).state_dict()._metadata
    with pytest.raises(ValueError, match="'gelu' is not supported; supported: None, 'relu'"):
        fastops.BatchNorm2d(3, activation="gelu")
    with pytest.raises(TypeError):
        fastops.BatchNorm2d(3, 1e-5, 0.1, True, True, None, None, "relu")  # type: ignore[misc]
    fused.activation = "gelu"
    with pytest.raises(ValueError, match="gelu"):
        fused(randn(2, 3, 4, 4))
    assert fused.num_batches_tracked == 0


@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle", "torch.save"])
def test_copies_keep_the_activation(way: str) -> None:
    layer = fastops.BatchNorm2d(3, activation="relu").eval()
    if way == "torch.save":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        ways = {
            "copy": copy.copy,
            "deepcopy": copy.deepcopy,
            "pickle": lambda m: pickle.loads(pickle.dumps(m)),
        }
        other = ways[way](layer)
    x, residual = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x, residual), layer(x, residual)) and other(x).ge(0).all()


def test_a_failed_call_changes_nothing() -> None:
    layer = fastops.BatchNorm2d(3, activation="relu")
    before = copy.deepcopy(layer.state_dict())
    for residual in (
        randn(2, 3, 4, 5),
        randn(2, 3, 4, 4).double(),
        randn(1, 3, 4, 4),
        randn(2, 3, 4, 4, device="meta"),
    ):
        with pytest.raises(RuntimeError, match=r"residual has .*, expected the input's"):
            layer(randn(2, 3, 4, 4), residual)
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in before.items())


def test_convert_and_revert() -> None:
    """A converted layer has no activation until it is given one, and does not lose one silently."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    text = repr(model)
    fastops.convert(model)
    assert model[0].activation is None and repr(model) == text
    x = randn(2, 3, 4, 4)
    model[1].activation = "relu"
    assert model(x).ge(0).all() and model[0](x).lt(0).any()
    with pytest.raises(ValueError, match=r"revert: 1: .*activation"):
        fastops.revert(model)
    assert type(model[0]) is fastops.BatchNorm2d, "nothing is reverted"
    model[1].activation = None
    assert type(fastops.revert(model)[1]) is nn.BatchNorm2d


def test_layers_pickled_before_there_were_activations() -> None:
    layer = fastops.BatchNorm2d(3)
    state = layer.__dict__.copy()
    del state["activation"]
    old = fastops.BatchNorm2d.__new__(fastops.BatchNorm2d)
    old.__setstate__(state)
    assert old.activation is None and repr(old) == repr(layer)
    assert torch.equal(old(randn(2, 3, 4, 4)), layer(randn(2, 3, 4, 4)))
