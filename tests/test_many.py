"""More images, or channels, than 65,535 against torch: values, gradients and layouts, in both layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastops.functional as G
from tests import interpreter, simt
from tests import test_against_torch as against
from tests.cases import Case, many
from tests.tolerance import assert_accurate

# The interpreter runs one program after the other: minutes.
pytestmark = pytest.mark.skipif(interpreter.IS_ON, reason="too many programs for the interpreter")


@against.every_layout
@pytest.mark.parametrize("case", many.CASES, ids=str)
def test_many(case: Case, channels_last: bool, backend: str) -> None:
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
    """As the others, but with room for roundings of the terms of the weight's gradient."""
    arguments = case.arguments(torch.float32, channels_last, against.device_of(backend))
    for_torch = against.on_cpu(arguments)
    exact = against.to_double(for_torch)
    shape = case.call(F, *for_torch).shape
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (y,), (dx, dw) = against.run(G, case, arguments, dy)
    (their_y,), (their_dx, their_dw) = against.run(F, case, for_torch, dy)
    (exact_y,), (exact_dx, exact_dw) = against.run(F, case, exact, dy)
    _, (_, terms) = against.run(F, case, tuple(t.abs() for t in exact), dy.abs())
    assert_accurate(y.cpu(), their_y, exact_y, "value")
    assert_accurate(dx.cpu(), their_dx, exact_dx, "gradient of the input")
    assert_accurate(dw.cpu(), their_dw, exact_dw, "gradient of the weight", terms)


def test_what_is_many() -> None:
    """Both numbers are above 65,535 for every function."""
    for op in {case.op for case in many.CASES}:
        first = [case.shapes for case in [*many.CASES, *many.SLOW] if case.op == op]
        assert any(x[0] > 65_535 for x, *_ in first), f"{op}: no case of many images"
        assert any(x[1] > 65_535 for x, *_ in first), f"{op}: no case of many channels"
