"""Batch norm beyond values and gradients: running statistics, hard numbers, errors, state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastops
import fastops.functional as G
from tests.cases import JUDGED, TORCH_VERSION
from tests.conftest import device_of


def modules(channels: int, **options: Any) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """torch's module and ours with the same random parameters."""
    theirs = nn.BatchNorm2d(channels, **options)
    if theirs.affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours = fastops.BatchNorm2d(channels, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(momentum=None),
        dict(momentum=0.0),
        dict(momentum=1.5),
        dict(affine=False),
        dict(track_running_stats=False),
        dict(eps=0.1, momentum=0.5),
    ],
    ids=str,
)
def test_module_follows_torch(options: dict[str, Any], channels_last: bool, backend: str) -> None:
    """Over several steps: outputs, buffers, num_batches_tracked; then in evaluation."""
    generator = torch.Generator().manual_seed(0)
    theirs, ours = (m.to(device_of(backend)) for m in modules(5, **options))
    assert repr(theirs) == repr(ours)
    for step in range(4):
        if step == 3:
            theirs.eval(), ours.eval()
        x = torch.randn((3, 5, 4, 6), generator=generator).to(device_of(backend)) * 2 + step
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_state_dict_both_ways() -> None:
    theirs, ours = modules(3)
    x = torch.randn(2, 3, 4, 4)
    ours(x), ours(x)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.num_batches_tracked == 2
    torch.testing.assert_close(theirs.eval()(x), ours.eval()(x))
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert fastops.convert(model).swapped == {"0": "BatchNorm2d"}


@pytest.mark.parametrize("shape", [(4, 3, 20, 20), (4, 3, 90, 90), (64, 3), (2, 300, 3, 3)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("value", [1e7, 1e30, -3e38, 0.1])
def test_constant_channel_is_exactly_zero(
    shape: tuple[int, ...], value: float, channels_last: bool, backend: str
) -> None:
    x = torch.full(shape, value, device=device_of(backend))
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    mean, var = x.new_zeros(shape[1]), x.new_ones(shape[1])
    y = G.batch_norm(x, mean, var, training=True, momentum=1.0)
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(mean, torch.full_like(mean, value))
    assert torch.equal(var, torch.zeros_like(var))


@pytest.mark.parametrize("channels_last", [False, True])
def test_huge_mean_small_variance(channels_last: bool, backend: str) -> None:
    x = torch.randn(4, 3, 70, 70, generator=torch.Generator().manual_seed(0)) + 1e5
    x = x.to(device_of(backend))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    mean, var = x.new_zeros(3), x.new_zeros(3)
    G.batch_norm(x, mean, var, training=True, momentum=1.0)
    exact = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), exact.var(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_squares_that_overflow(channels_last: bool, backend: str) -> None:
    """± 1e30: the variance is beyond fp32, the result is not NaN."""
    x = torch.tensor([1e30, -1e30]).repeat(64).view(4, 2, 4, 4).to(device_of(backend))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    y = G.batch_norm(x, None, None, training=True)
    assert y.isfinite().all()


ONES, X = torch.ones(3), torch.randn(2, 3, 4, 4)
WRONG = {
    "one value per channel": (ValueError, dict(input=torch.ones(1, 3, 1, 1), training=True)),
    "eps 0 in training": (ValueError, dict(training=True, eps=0.0)),
    "negative eps": (ValueError, dict(eps=-1.0)),
    "one statistic, training": (ValueError, dict(running_var=None, training=True)),
    "one statistic": (RuntimeError, dict(running_var=None)),
    "no statistics": (RuntimeError, dict(running_mean=None, running_var=None)),
    "short weight": (RuntimeError, dict(weight=torch.ones(2), training=True)),
    "long bias": (RuntimeError, dict(bias=torch.ones(4), training=True)),
    "long running_mean": (RuntimeError, dict(running_mean=torch.ones(4), training=True)),
    "long running_var": (RuntimeError, dict(running_var=torch.ones(4), training=True)),
    "narrow parameters": (RuntimeError, dict(weight=ONES.bfloat16(), training=True)),
    "mixed parameters": (
        RuntimeError,
        dict(input=X.bfloat16(), weight=ONES.bfloat16(), training=True),
    ),
    "wide buffers": (RuntimeError, dict(running_mean=ONES.double(), training=True)),
    "fp64 x, fp32 parameters": (RuntimeError, dict(input=X.double(), weight=ONES)),
    "rank 1": (RuntimeError, dict(input=ONES, training=True)),
    "rank 0": (IndexError, dict(input=torch.tensor(1.0), training=True)),
    "integers": (NotImplementedError, dict(input=X.long())),
    "momentum None": (TypeError, dict(momentum=None, training=True)),
    "training 1": (TypeError, dict(training=1)),
    "a list": (TypeError, dict(running_mean=[1, 1, 1])),
    "statistics with gradient": (RuntimeError, dict(running_mean=ONES.clone().requires_grad_())),
    "another device": (RuntimeError, dict(weight=ONES.to("meta"), training=True)),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_torchs_and_change_nothing(name: str) -> None:
    expected, changes = WRONG[name]
    for module in (F, G) if TORCH_VERSION == JUDGED else (G,):
        call = dict(input=X, running_mean=ONES.clone(), running_var=ONES.clone()) | changes
        before = {k: t.detach().clone() for k, t in call.items() if isinstance(t, Tensor)}
        with pytest.raises(expected):
            module.batch_norm(**call)
        if module is G:  # torch notices some of these too late
            assert all(t.is_meta or torch.equal(call[k], t) for k, t in before.items())


def test_buffers_are_seen_to_change() -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    G.batch_norm(X, mean, var, training=True)
    assert (mean._version, var._version) == (1, 1)
    G.batch_norm(X, mean, var)
    assert (mean._version, var._version) == (1, 1)


def test_evaluation_survives_a_later_training_step() -> None:
    """The gradient is that of the statistics at the time of the call."""
    mean, var = torch.zeros(3), torch.ones(3)
    x = X.clone().requires_grad_()
    y = G.batch_norm(x, mean, var, eps=0.0)
    G.batch_norm(X * 5, mean, var, training=True)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # type: ignore[arg-type]


def test_strided_buffers_and_expanded_input() -> None:
    wide = torch.ones(2, 6)
    theirs, ours = wide.clone(), wide.clone()
    x = torch.randn(4, 3, 1, 1).expand(-1, -1, 3, 5)
    a = F.batch_norm(x, theirs[0, ::2], theirs[1, ::2], training=True)
    b = G.batch_norm(x, ours[0, ::2], ours[1, ::2], training=True)
    torch.testing.assert_close(b, a)
    torch.testing.assert_close(ours, theirs)


def test_channels_last_3d_is_kept() -> None:
    x = torch.randn(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d).requires_grad_()
    y, reference = (m.batch_norm(x, None, None, training=True) for m in (G, F))
    assert y.stride() == reference.stride() == x.stride()
    torch.testing.assert_close(y, reference)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert dx.stride() == x.stride()


@pytest.mark.parametrize("training", [False, True])
def test_forward_mode(training: bool) -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.double, requires_grad=True)
    w, b = (torch.randn(3, dtype=torch.double, requires_grad=True) for _ in range(2))
    mean, var = torch.zeros(3, dtype=torch.double), torch.ones(3, dtype=torch.double)

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return G.batch_norm(x, mean, var, w, b, training, 0.0)

    assert torch.autograd.gradcheck(function, (x, w, b), check_forward_ad=True)


def test_third_order_is_refused() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    y = G.batch_norm(x, None, None, training=True).pow(3).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third order"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("shape", [(2, 3, 90, 91), (5, 64, 30, 30), (3, 300, 9, 9)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_number_of_threads(shape: tuple[int, ...], channels_last: bool, threads: None) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
        w = torch.ones(shape[1], requires_grad=True)
        y = G.batch_norm(x, mean, var, w, training=True)
        dx, dw = torch.autograd.grad(y.sin().sum(), (x, w), create_graph=True)
        second = torch.autograd.grad(dx.sin().sum() + dw.sum(), (x, w))
        results.append([y, mean, var, dx, dw, *second])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_meta() -> None:
    x = torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last)
    y = G.batch_norm(x, None, None, training=True)
    assert y.is_meta and y.stride() == x.stride()
