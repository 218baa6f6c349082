"""Every small case against the slow loops of ``oracle.py``, in fp64; and the loops against torch."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G
from tests import oracle
from tests.cases import Case, all_cases
from tests.conftest import device_of

# Numpy on what has no mean: an empty batch. torch on padding='same' with an even kernel.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Using padding:UserWarning")

CASES = [
    c
    for c in all_cases()
    if not c.large and torch.float64 in c.dtypes and hasattr(oracle, c.op) and hasattr(G, c.op)
]


def assert_is_oracle(module: ModuleType, case: Case, arguments: tuple[Any, ...]) -> None:
    """Values to 12 digits, positions exactly; arguments (running statistics) end with the same values too."""
    arrays = [a.cpu().numpy().copy() if isinstance(a, Tensor) else a for a in arguments]
    expected = case.call(oracle, *arrays)
    tensors = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    got = case.call(module, *tensors)
    pairs = list(zip(tensors, arrays, strict=True))
    pairs += zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
    for ours, reference in pairs:
        if isinstance(ours, Tensor):
            torch.testing.assert_close(
                ours.cpu(), torch.as_tensor(reference), rtol=1e-12, atol=1e-12, equal_nan=True
            )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_oracle(case: Case, backend: str) -> None:
    assert_is_oracle(G, case, case.arguments(torch.float64, device=device_of(backend)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_oracle_agrees_with_torch(case: Case) -> None:
    assert_is_oracle(F, case, case.arguments(torch.float64))
