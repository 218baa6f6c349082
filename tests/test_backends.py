"""Which backend serves a call: the first that can, for a reason that is named; or the one that is forced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import fastops
import fastops.functional as F
from fastops import _C, backends
from fastops.backends import triton
from fastops.doctor import _ops


@pytest.fixture
def gpu_backends(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Choices are made anew, and forgotten."""
    backends._choose.cache_clear()
    yield monkeypatch  # type: ignore[misc]
    monkeypatch.undo()
    backends._choose.cache_clear()


def replace(monkeypatch: pytest.MonkeyPatch, name: str, missing: str | None) -> None:
    """A GPU backend that has every op, or is not there."""
    changed = backends.BACKENDS[name]._replace(
        launcher=lambda op: None if missing else print,
        why_unavailable=lambda: missing,
        describe=lambda: f"{name} kernels",
    )
    monkeypatch.setitem(backends.BACKENDS, name, changed)


def test_cuda_before_triton(gpu_backends: pytest.MonkeyPatch) -> None:
    replace(gpu_backends, "cuda", None)
    replace(gpu_backends, "triton", None)
    choice = backends.choose("conv", "cuda")
    assert choice.backend == "cuda" and choice.reason == "cuda kernels"


def test_triton_without_cuda(gpu_backends: pytest.MonkeyPatch) -> None:
    replace(gpu_backends, "cuda", "not compiled in")
    replace(gpu_backends, "triton", None)
    choice = backends.choose("conv", "cuda")
    assert choice.backend == "triton" and choice.reason == "cuda: not compiled in; triton kernels"


def test_neither(gpu_backends: pytest.MonkeyPatch) -> None:
    replace(gpu_backends, "cuda", "not compiled in")
    replace(gpu_backends, "triton", "not installed")
    with pytest.raises(NotImplementedError, match="cuda: not compiled in; triton: not installed"):
        backends.choose("conv", "cuda")


def test_forced(gpu_backends: pytest.MonkeyPatch) -> None:
    replace(gpu_backends, "cuda", None)
    replace(gpu_backends, "triton", None)
    with fastops.backend("triton"):
        assert backends.choose("conv", "cuda")[:2] == ("triton", "forced")
        with pytest.raises(NotImplementedError, match="forced, works on cuda tensors"):
            F.max_pool2d(torch.zeros(1, 1, 4, 4), 2)
    gpu_backends.setattr(backends, "ENVIRONMENT", "triton")
    backends._choose.cache_clear()
    assert backends.choose("conv", "cuda").backend == "triton"
    assert backends.choose("conv", "cpu").backend == "cpu"


def test_backward_passes_in_autograd_s_threads_are_forced_too(gpu_backends: pytest.MonkeyPatch) -> None:
    replace(gpu_backends, "cuda", None)
    replace(gpu_backends, "triton", None)
    found: list[str] = []

    def elsewhere() -> None:
        found.append(backends.choose("conv", "cuda").backend)

    def in_a_thread() -> str:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return found.pop()

    with fastops.backend("triton"):
        assert in_a_thread() == "cuda"  # somebody else's
        gpu_backends.setattr(torch._C, "_current_graph_task_id", lambda: 0)
        assert in_a_thread() == "triton"
    assert in_a_thread() == "cuda"


def test_forced_and_missing(gpu_backends: pytest.MonkeyPatch) -> None:
    replace(gpu_backends, "cuda", None)
    replace(gpu_backends, "triton", "not installed")
    with fastops.backend("triton"), pytest.raises(NotImplementedError, match="'triton': not installed"):
        backends.choose("conv", "cuda")


needs_triton = pytest.mark.skipif(triton.why_unavailable() is not None, reason=str(triton.why_unavailable()))


@needs_triton
def test_triton_refuses_numbers_of_taps() -> None:
    """What CUDA's max pooling keeps for its own backward."""
    params = _C.PoolParams(n=1, c=1, in_=(1, 4, 4), out=(1, 2, 2), positions=_C.IndexType.u8)
    for op in ("gather", "scatter_add"):
        launcher = triton.launcher(op)
        assert launcher is not None
        with pytest.raises(NotImplementedError, match="'triton' cannot go on from there"):
            launcher(params, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


@needs_triton
def test_explain_says_by_which_triton_kernels(gpu_backends: pytest.MonkeyPatch) -> None:
    from fastops.backends.triton import conv_plan

    replace(gpu_backends, "cuda", "not compiled in")
    replace(gpu_backends, "triton", None)
    gpu_backends.setattr(conv_plan, "has_tma", lambda: True)
    layer = fastops.Conv2d(64, 128, 3, padding=1).bfloat16().to(memory_format=torch.channels_last)
    x = torch.empty(32, 64, 56, 56, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    text = fastops.explain(layer, x, device="cuda")
    assert "conv: triton (cuda: not compiled in; triton kernels)" in text
    assert "    forward: tma kernel 256×128×64, 8 warps, 4 stages" in text
    assert "    weight_grad: tma kernel 128×64×64, 4 warps, 4 stages" in text


@pytest.mark.parametrize(("value", "served"), [("triton", True), ("cpu", False)])
def test_environment(value: str, served: bool) -> None:
    environment = {**os.environ, "FASTOPS_BACKEND": value}
    done = subprocess.run(
        [sys.executable, "-c", "import fastops.functional"],
        env=environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == served
    assert served or "it is cuda or triton" in done.stderr


def test_triton_has_every_op() -> None:
    assert {*triton.FILES} == {*_ops(_C.cpu_baseline)}


def test_importing_is_quick() -> None:
    """torch.compile's machinery, seconds of it, does not come with fastops."""
    program = "import torch, sys; before = {*sys.modules}; import fastops; print(*({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch._dynamo", "torch._inductor"} & {*done.stdout.split()}


WITHOUT_NUMPY = """
import importlib, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numpy":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
import torch, fastops
from fastops.backends import triton
for one in pkgutil.walk_packages(fastops.__path__, "fastops."):
    if "triton" not in one.name or triton.why_unavailable() is None:
        importlib.import_module(one.name)
assert "numpy" not in sys.modules
fastops.BatchNorm2d(3)(torch.rand(2, 3, 4, 4)).sum().backward()
"""


def test_torch_is_all_that_is_needed() -> None:
    """torch itself does without numpy; so fastops does, Triton's kernels too."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMPY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
