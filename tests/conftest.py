"""Fixtures: every test that takes `backend` runs once per backend that this machine can run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

import fastops
from fastops import _C
from fastops import backends as _backends
from fastops.backends import native
from tests import interpreter, simt
from tests.cases import Case

# What somebody has tuned on this machine is not tested.
os.environ["FASTOPS_TUNED"] = os.devnull

# The CPU kernels of the other instruction sets that this processor has.
for _isa in _C.usable_isas():
    if _isa != native.ISA:
        _cpu = _backends.Backend(partial(native.cpu_launcher, isa=_isa), "cpu", lambda: "C++ kernels")
        _backends.BACKENDS[f"cpu-{_isa}"] = _cpu

if interpreter.IS_ON:  # a process of its own: nothing else is run in it
    _backends.BACKENDS.clear()
    _backends.BACKENDS[interpreter.NAME] = _backends.Backend(interpreter.launcher, "cpu", lambda: "Triton's")
elif simt.why_unavailable() is None:
    _backends.BACKENDS[simt.NAME] = _backends.Backend(simt.launcher, "cpu", lambda: "emulated CUDA kernels")
    _backends.NUMBERS_TAPS.add(simt.NAME)


# Those that emulate or interpret a GPU.
SLOW = (simt.NAME, interpreter.NAME)


def device_of(backend: str) -> str:
    """The device whose tensors a backend works on."""
    return _backends.BACKENDS[backend].device_type


def _parameters() -> Iterator[Any]:
    for name, one in _backends.BACKENDS.items():
        if one.device_type == "cpu":
            yield name
        elif torch.cuda.is_available() and one.why_unavailable() is None:
            yield pytest.param(name, marks=pytest.mark.gpu)


@pytest.fixture(params=_parameters())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one backend for the length of a test; its value is the backend's name."""
    with fastops.backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _fp32_is_fp32() -> None:
    """No test meets TF32, which torch allows convolutions on GPUs, unless it asks for it."""
    if torch.cuda.is_available():
        torch._C._set_cudnn_allow_tf32(False)  # where torch.testing has frozen the flags, too


@pytest.fixture
def device(backend: str) -> str:
    """The device whose tensors the backend works on."""
    return device_of(backend)


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that set torch's number of threads: restores it, and has small cases use them too."""
    before = torch.get_num_threads()
    _C.set_min_work_per_thread(1)
    yield
    _C.set_min_work_per_thread(16384)
    torch.set_num_threads(before)


def pytest_itemcollected(item: Any) -> None:
    """What takes the interpreter seconds, it does in the long sweep only; likewise the emulation, which is
    always asked for the values of the large cases of tests/cases. Whether numbers above 65,535 fit does not
    depend on the instructions: all sets of them are asked there, too."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    large = getattr(params.get("case"), "large", False)
    if interpreter.IS_ON and (large or interpreter.SLOW.search(item.name)):
        item.add_marker("long")
    many = item.originalname.startswith("test_many")
    again = many or item.originalname.startswith(("test_repeatable", "test_odd_strides"))
    by = params.get("backend", "")
    if large and ((again and by == simt.NAME) or (many and by.startswith("cpu-"))):
        item.add_marker("long")
    # -k in_turn: each case once, by turns in one of two dtypes and layouts.
    case = params.get("case")
    if isinstance(case, Case) and item.name.endswith(("float32-nchw]", "bfloat16-nhwc]")[case.turn(2)]):
        item.extra_keyword_matches.add("in_turn")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """First what takes a minute a test: at the end (`-n 2`) one process would wait for the other."""
    items.sort(key=lambda item: item.path.name != "test_triton.py")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reason = simt.why_unavailable()
    if reason is not None:
        terminalreporter.line(f"CUDA kernels were not run in the emulation: {reason}")
