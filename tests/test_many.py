"""More images, or channels, than 65,535 against torch: values, gradients and layouts, in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G
from tests import interpreter, simt
from tests import test_against_torch as against
from tests.cases import Case, many
from tests.tolerance import assert_accurate, terms_of_affine

# The interpreter runs one program after the other: minutes.
pytestmark = pytest.mark.skipif(interpreter.IS_ON, reason="too many programs for the interpreter")


Terms = Callable[[Case, tuple[Any, ...], Tensor], list[Tensor | None]]


def by_terms(case: Case, channels_last: bool, backend: str, terms_of: Terms) -> None:
    """As test_values_and_gradients, but sums over all images may be off by roundings of their terms: on which
    side the error falls is luck, and torch's may be next to nothing."""
    arguments = case.arguments(torch.float32, channels_last, against.device_of(backend))
    for_torch = against.on_cpu(arguments)
    exact = against.to_double(for_torch)
    shape = case.call(F, *for_torch).shape
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (y,), grads = against.run(G, case, arguments, dy)
    (their_y,), their_grads = against.run(F, case, for_torch, dy)
    (exact_y,), exact_grads = against.run(F, case, exact, dy)
    assert_accurate(y.cpu(), their_y, exact_y, "value")
    results = zip(grads, their_grads, exact_grads, terms_of(case, exact, dy.double()), strict=True)
    for i, (ours, theirs, reference, terms) in enumerate(results):
        assert_accurate(ours.cpu(), theirs, reference, f"gradient {i}", terms)


def of_depthwise(case: Case, exact: tuple[Any, ...], dy: Tensor) -> list[Tensor | None]:
    _, (_, terms) = against.run(F, case, tuple(t.abs() for t in exact), dy.abs())
    return [None, terms]


def of_batch_norm(case: Case, exact: tuple[Any, ...], dy: Tensor) -> list[Tensor | None]:
    x, mean, var, *_ = exact
    normal = F.batch_norm(x, mean.clone(), var.clone(), training=case.kwargs["training"])
    return [None, *terms_of_affine(normal, dy)]


@against.every_layout
@pytest.mark.parametrize("case", many.CASES, ids=str)
def test_many(case: Case, channels_last: bool, backend: str) -> None:
    if case.op == "batch_norm":
        by_terms(case, channels_last, backend, of_batch_norm)
    else:
        against.test_values_and_gradients(case, torch.float32, channels_last, backend)


@against.every_layout
@pytest.mark.parametrize("case", many.SLOW, ids=str)
def test_many_groups(case: Case, channels_last: bool, backend: str) -> None:
    if backend == simt.NAME and channels_last:
        pytest.skip("the emulation runs the other layout")
    against.test_values_and_gradients(case, torch.float32, channels_last, backend)


@against.every_layout
@pytest.mark.parametrize("case", many.DEPTHWISE, ids=str)
def test_many_depthwise(case: Case, channels_last: bool, backend: str) -> None:
    by_terms(case, channels_last, backend, of_depthwise)


def test_what_is_many() -> None:
    """Both numbers are above 65,535 for every function."""
    for op in {case.op for case in many.CASES}:
        first = [case.shapes for case in [*many.CASES, *many.SLOW] if case.op == op]
        assert any(x[0] > 65_535 for x, *_ in first), f"{op}: no case of many images"
        assert any(x[1] > 65_535 for x, *_ in first), f"{op}: no case of many channels"
