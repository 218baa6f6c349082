"""fastops.tune without a GPU: which choices are stored, found again, and ignored. (Times are made up.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastops
from fastops import _C
from fastops.backends import triton as kernels

if kernels.why_unavailable() is not None:
    pytest.skip(str(kernels.why_unavailable()), allow_module_level=True)

from fastops import tune
from fastops.backends.triton import conv_plan, tuned

GOOD = ["gather", 64, 64, 32, 4, 2]
PASSES = [_C.ConvPass.forward, _C.ConvPass.input_grad, _C.ConvPass.weight_grad]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FASTOPS_TUNED", str(tmp_path / "deep" / "triton.json"))
    monkeypatch.setattr(conv_plan, "has_tma", lambda: True)
    tuned.load.cache_clear()
    yield tmp_path / "deep" / "triton.json"
    tuned.load.cache_clear()


def layer() -> tuple[torch.nn.Module, torch.Tensor]:
    module = fastops.Conv2d(64, 64, 3, padding=1).bfloat16().to(memory_format=torch.channels_last)
    return module, torch.randn(2, 64, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last)


def third_is_fastest() -> Callable[..., float]:
    calls = iter(range(10**6))
    return lambda run, tensors: abs(next(calls) - 2.0)


def test_the_fastest_is_stored_and_found(file: Path) -> None:
    found = tune.tune(*layer(), measure=third_is_fastest(), report=lambda line: None)
    assert file.exists() and len(found) == 3  # the passes
    (pass_, params), *_ = tune.convolutions(*layer())
    third = conv_plan.candidates(params, pass_, True)[2]
    assert conv_plan.plan(params, pass_) == third != conv_plan.default_plan(params, pass_, True)
    # Another call adds to what is there.
    tuned.store({"other": ("gather", 64, 64, 32, 4, 2)})
    assert {*tuned.load()["none"]} == {*found, "other"}
    assert [p.name for p in file.parent.iterdir() if p.suffix not in (".json", ".lock")] == []


def test_what_cannot_run_is_left_out(file: Path) -> None:
    said: list[str] = []

    def fails_at_first(run: Any, tensors: Any, calls: Any = iter(range(10**6))) -> float:  # noqa: B008
        if next(calls) == 0:
            raise RuntimeError("out of shared memory")
        return 1.0

    tune.tune(*layer(), measure=fails_at_first, report=said.append)
    (pass_, params), *_ = tune.convolutions(*layer())
    assert "RuntimeError" in said[0]
    assert conv_plan.plan(params, pass_) == conv_plan.candidates(params, pass_, True)[1]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        json.dumps({"format": tuned.FORMAT, "devices": {"none": {"k": GOOD}}}),
        json.dumps({**tuned.versions(), "triton": "2.0", "devices": {"none": {"k": GOOD}}}),
        json.dumps({**tuned.versions(), "devices": []}),
        json.dumps({**tuned.versions(), "devices": {"none": {"k": []}}}),
        json.dumps({**tuned.versions(), "devices": {"none": {"k": ["tma", 1, 2, 3, -4, 5]}}}),
        json.dumps({**tuned.versions(), "devices": {"none": {"k": ["other", 1, 2, 3, 4, 5]}}}),
    ],
    ids=["empty", "cut off", "no object", "no versions", "stale", "devices", "no choice", "sign", "kernel"],
)
def test_a_stale_or_corrupt_file_is_as_none(content: str, file: Path) -> None:
    file.parent.mkdir()
    file.write_text(content)
    assert not any(tuned.load().values())
    tuned.store({"k": ("gather", 64, 64, 32, 4, 2)})
    assert tuned.load() == {"none": {"k": ("gather", 64, 64, 32, 4, 2)}}


@pytest.mark.parametrize("pass_", PASSES, ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=lambda d: str(d)[6:])
def test_candidates_begin_with_the_default(pass_: Any, dtype: torch.dtype) -> None:
    module, x = layer()
    for _, params in tune.convolutions(module.to(dtype), x.to(dtype)):
        for tma in (False, True):
            plans = conv_plan.candidates(params, pass_, tma)
            assert plans[0] == conv_plan.default_plan(params, pass_, tma)
            assert len(plans) == len({*plans})
            assert tma or all(plan.kernel == "gather" for plan in plans)


def test_command_line_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "fastops.tune", "--layer", "Conv2d(8, 8, 3)", "--input", "1,8,6,6"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, env=os.environ
    )
    assert done.returncode == 2 and "no GPU" in done.stderr
