"""Calls by recipe (fastops/ops/replay.py): the third call and later ones are as the first, and whatever a
recipe does not know of is not done by it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastops
import fastops.functional as G
from fastops.ops import replay
from tests.cases import Case
from tests.test_properties import SMALL, run
from tests.tolerance import assert_same_layout


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The recipes made during a test, in order: what they were made of."""
    made: list[str] = []
    for name in ("_launching", "_applying"):
        original = getattr(replay, name)

        def noting(*args: Any, name: str = name, original: Callable[..., Any] = original) -> Any:
            recipe = original(*args)
            if recipe is not None:
                made.append(name)
            return recipe

        monkeypatch.setattr(replay, name, noting)
    return made


def assert_equal(a: list[Tensor], b: list[Tensor], what: str) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and torch.equal(x.nan_to_num(7), y.nan_to_num(7)), what
        assert_same_layout(x, y)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_later_calls_are_as_the_first(case: Case, channels_last: bool) -> None:
    dtype = torch.float32 if torch.float32 in case.dtypes else case.dtypes[0]

    def once(seed: int) -> list[Tensor]:
        """Results, gradients, and the arguments afterwards: running statistics are updated."""
        arguments = case.arguments(dtype, channels_last, seed=seed)
        results = run(case, arguments)
        with torch.no_grad():
            y = case.call(G, *arguments)
        results += [y] if isinstance(y, Tensor) else list(y)
        return results + [a for a in arguments if isinstance(a, Tensor)]

    for seed in range(4):
        with fastops.backend("cpu"):  # forced: no recipes
            expected = once(seed)
        assert_equal(once(seed), expected, f"call {seed}")


def test_most_calls_have_recipes(used: list[str]) -> None:
    # A batch that no other test has: what was learnt before is not learnt again.
    x, w = torch.randn(13, 4, 6, 6), torch.randn(4, 4, 3, 3, requires_grad=True)
    mean, var = torch.zeros(4), torch.ones(4)
    calls: list[Callable[[], Any]] = [
        lambda: G.conv2d(x, w, None, 1, 1),
        lambda: G.conv2d(x, w.detach(), padding=1, activation="relu"),
        lambda: G.max_pool2d(x, 3, 1, return_indices=True),
        lambda: G.avg_pool2d(x, (3, 2)),
        lambda: G.adaptive_avg_pool2d(x, 5),
        lambda: G.batch_norm(x, mean, var, None, None, True),
        lambda: G.batch_norm(x, mean, var),
        lambda: G.interpolate(x, scale_factor=1.5, mode="bilinear"),
    ]
    for i, call in enumerate(calls):
        before = len(used)
        for _ in range(3):
            call()
        assert len(used) > before, f"no recipe for call {i}"


def test_options_are_told_apart_by_type() -> None:
    x = torch.randn(1, 2, 6, 6)
    for _ in range(3):
        G.avg_pool2d(x, 2, 1)
    for wrong in (1.0, True, "1", (1.0, 1)):
        with pytest.raises(TypeError):
            G.avg_pool2d(x, 2, wrong)


def test_what_is_wrong_stays_wrong() -> None:
    x, mean, var = torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3)
    for _ in range(3):
        G.batch_norm(x, mean, var, training=True)
        with pytest.raises(RuntimeError, match="groups"):
            G.conv2d(x, torch.randn(2, 2, 1, 1))
    with pytest.raises(RuntimeError, match="not differentiable"):
        G.batch_norm(x, mean.clone().requires_grad_(), var, training=True)
    with pytest.raises(RuntimeError, match="meta"):
        G.batch_norm(x, mean.to("meta"), var, training=True)


def test_the_backend_that_is_forced_serves() -> None:
    x = torch.randn(1, 2, 6, 6)
    for _ in range(3):
        G.avg_pool2d(x, 2)
    with fastops.backend("cuda"), pytest.raises(NotImplementedError):
        G.avg_pool2d(x, 2)


def test_autocast_is_seen() -> None:
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    for _ in range(3):
        G.conv2d(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        assert G.conv2d(x, w).dtype is torch.bfloat16
    assert G.conv2d(x, w).dtype is torch.float32


def test_modes_are_seen() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.randn(1, 2, 6, 6)
    for _ in range(3):
        G.avg_pool2d(x, 2)
    with FakeTensorMode() as mode:
        assert isinstance(G.avg_pool2d(mode.from_tensor(x), 2), torch._subclasses.FakeTensor)
    assert torch.func.vmap(lambda x: G.avg_pool2d(x, 2))(x[None]).shape == (1, 1, 2, 3, 3)


def test_a_negated_view_is_negated() -> None:
    z = torch.complex(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    for x in (z.imag, z.imag, z.imag, z.conj().imag):
        assert G.avg_pool2d(x, 1).item() == (-1 if x.is_neg() else 1)


def test_what_memory_does_not_show() -> None:
    """Negated views with any strides, and forward mode's zeros, which have no memory."""
    x = torch.randn(1, 1, 6, 10)
    for _ in range(3):
        y = G.avg_pool2d(x, 2)
    assert torch.equal(G.avg_pool2d(torch._neg_view(x), 2), -y)
    assert not G.avg_pool2d(torch._efficientzerotensor((1, 1, 6, 10)), 2).any()


def test_the_same_tensor_twice() -> None:
    """Where it was given twice nothing can be learnt: which of the two did the kernel read?"""
    one, two = torch.rand(3) + 1, torch.rand(3) + 1
    x = torch.randn(2, 3, 4, 4)
    for _ in range(3):
        G.batch_norm(x, one, one)
    with fastops.backend("cpu"):  # no recipe
        expected = G.batch_norm(x, one, two)
    assert torch.equal(G.batch_norm(x, one, two), expected)


def test_running_statistics_are_marked_as_written() -> None:
    x, mean, var = torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3)
    versions = []
    for _ in range(4):
        G.batch_norm(x, mean, var, training=True)
        versions.append((mean._version, var._version))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(versions))


def test_checkpoints_do_not_see_the_recording() -> None:
    """They count what is saved, once when it runs and once when it runs again."""
    w = torch.randn(2, 2, 3, 3)
    for _ in range(4):
        x = torch.randn(1, 2, 7, 7, requires_grad=True)
        checkpoint(lambda x: G.conv2d(x, w), x, use_reentrant=False).sum().backward()
        assert x.grad is not None


def test_a_changed_weight_is_read_again() -> None:
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    with torch.no_grad():
        y = [G.conv2d(x, w) for _ in range(3)][-1]
        w *= 2
        assert torch.equal(G.conv2d(x, w), 2 * y)


def test_forgets_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "KEPT", 5)
    for n in (*range(1, 12), 1, 1, 1):
        assert G.avg_pool2d(torch.ones(n, 1, 4, 4), 2).shape == (n, 1, 2, 2)


def test_without_memory_to_learn_the_call_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call of a signature is recorded, which allocates once more: its result was lost, although
    running statistics had been updated."""

    def no_memory(*_: Any) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(replay, "_learn", no_memory)
    x, mean, var = torch.rand(2, 3, 5, 7), torch.zeros(3), torch.ones(3)
    for _ in range(3):
        y = G.batch_norm(x, mean, var, training=True)
    expected = torch.zeros(3), torch.ones(3)
    for _ in range(3):
        assert torch.allclose(y, F.batch_norm(x, *expected, training=True), atol=1e-6)
    assert torch.allclose(mean, expected[0]) and torch.allclose(var, expected[1])
