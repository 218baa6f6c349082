"""Fixtures: every test that takes `backend` runs once per backend that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

import fastops
from fastops import _C
from fastops import backends as _backends
from fastops.backends import native

# The CPU kernels of the other instruction sets that this processor has.
for _isa in _C.usable_isas():
    if _isa != native.ISA:
        _backends.BACKENDS[f"cpu-{_isa}"] = partial(native.cpu_launcher, isa=_isa)


def device_of(backend: str) -> str:
    """The device whose tensors a backend works on."""
    return "cuda" if backend in ("cuda", "triton") else "cpu"


@pytest.fixture(params=[b for b in _backends.BACKENDS if device_of(b) == "cpu" or torch.cuda.is_available()])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one backend for the length of a test; its value is the backend's name."""
    with fastops.backend(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that set torch's number of threads: restores it, and has small cases use them too."""
    before = torch.get_num_threads()
    _C.set_min_work_per_thread(1)
    yield
    _C.set_min_work_per_thread(16384)
    torch.set_num_threads(before)
