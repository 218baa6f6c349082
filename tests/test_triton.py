"""The Triton kernels without a GPU: in Triton's interpreter, and through its own launch path on a driver that
launches nothing. Each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastops import _C
from fastops.backends import triton as kernels
from tests import interpreter, triton_offline

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "triton_resources.md"

pytestmark = pytest.mark.skipif(kernels.why_unavailable() is not None, reason=str(kernels.why_unavailable()))


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that is not this one's heir: TRITON_INTERPRET as said, or not set."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command],
        env={**inherited, **environment, "PYTHONPATH": ":".join(p for p in sys.path if p)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def interpret(*arguments: str, **environment: str) -> None:
    command = ("-m", "pytest", "-p", "no:cacheprovider", *arguments)
    done = run(*command, TRITON_INTERPRET="1", **environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_interpreted() -> None:
    """Every case of the suite against torch, by turns contiguous in fp32 and channels_last in bf16; without
    those that take the interpreter seconds."""
    interpret("tests/test_against_torch.py", "-k", "test_values and in_turn")


def test_interpreted_in_64_bits() -> None:
    """A case of each family with the indices that tensors beyond 2³¹ elements have."""
    some = "test_values and bfloat16 and (2x3x8x8 or 2x3x4x4 or 2x5x7x11 or 2x5x9x7 or 2x6x9x11 or 1x8x13x11)"
    interpret("tests/test_against_torch.py", "-k", some, FASTOPS_TEST_WIDE="1")


def test_indices_are_wide_where_32_bits_do_not_suffice() -> None:
    from fastops.backends.triton import channelwise, conv_shared, interpolate, pool, runtime

    large, small = (1, 2**16, 2**15), (1, 8, 8)
    for size, wanted in ((large, "int64"), (small, "int32")):
        shape = dict(n=1, c=1, in_=size, out=size)
        kernel = dict(kernel=(1, 1, 1), stride=(1, 1, 1), pad=(0, 0, 0), dilation=(1, 1, 1))
        found = [
            pool._index(_C.PoolParams(**shape, **kernel)),
            interpolate._index(_C.InterpolateParams(**shape), size[1:]),
            conv_shared.index_of(_C.ConvParams(k=1, **shape, **kernel)),
            channelwise.Slab(_C.DType.bf16, True, 1, 8, size[1] * size[2]).index,
            runtime.index_type(2**31 - 2**16 if wanted == "int64" else 2**30),
        ]
        assert [str(t) for t in found] == [wanted] * len(found)


def test_interpreted_tma() -> None:
    interpret("tests/test_conv_triton.py")


@pytest.mark.long
def test_interpreted_long() -> None:
    """Every test of every case, at every dtype, also those that take long."""
    interpret("tests/test_against_torch.py", "tests/test_properties.py", "-m", "long or not long")


@pytest.mark.long
def test_launch_path_long() -> None:
    """Every op at every configuration, also those that fastops.tune may choose, for every architecture; and
    with 64-bit indices, for one."""
    if (reason := triton_offline.why_unavailable()) is not None:
        pytest.skip(reason)
    for calls, wide in ([], "0"), (["candidates"], "0"), (["90", "bfloat16"], "1"):
        done = run("-m", "tests.triton_offline", *calls, FASTOPS_TEST_WIDE=wide)
        assert done.returncode == 0, done.stderr[-3000:]


def test_launch_path() -> None:
    """Every op in bf16 and TF32, for Hopper: compiles, launches, and keeps the rules."""
    if (reason := triton_offline.why_unavailable()) is not None:
        pytest.skip(reason)
    done = run("-m", "tests.triton_offline", "90", "bfloat16", "TF32", "uint8")
    assert done.returncode == 0, done.stderr[-3000:]
    # The kernels of the table, which has what one version of Triton made of them.
    known = set(re.findall(r"^\| `(\w+)` \| sm_90", TABLE.read_text(), re.MULTILINE))
    assert known == set(re.findall(r"^\| `(\w+)` \| sm_90", done.stdout, re.MULTILINE))


# ---- the interpreter's repairs ------------------------------------------------------------------


def test_bfloat16_rounds_as_torch_does() -> None:
    values = torch.randn(10000) * torch.tensor(2.0) ** torch.randint(-130, 120, (10000,))
    values = torch.cat([values, torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 3.4e38, 1e-45])])
    bits = interpreter.to_bfloat16(values.numpy())
    assert np.array_equal(bits, values.bfloat16().view(torch.int16).numpy().view(np.uint16))
    assert torch.equal(torch.from_numpy(interpreter.to_float32(bits)), values.bfloat16().float())


PLANTED = """
import pytest, torch, triton, triton.language as tl
from triton.runtime.errors import InterpreterError
from tests import interpreter

@triton.jit
def beyond(x, y, N, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(y + i, tl.load(x + i), mask=i < N)

@triton.jit
def twice(y, B: tl.constexpr):
    tl.store(y + tl.arange(0, B), tl.zeros((B,), tl.float32))

@triton.jit
def narrow(x, y, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(y + i, tl.load(x + i) + tl.load(x + i))

def test_it():
    x, y = torch.zeros(12), torch.zeros(16)
    with pytest.raises(InterpreterError, match="in no tensor"):
        beyond[(1,)](x, y, 12, 16)
    with pytest.raises(RuntimeError, match="stored to twice"):
        twice[(2,)](y, 16)
    with pytest.raises(InterpreterError, match="arithmetic in bfloat16"):
        narrow[(1,)](y.bfloat16(), y, 16)
"""


def test_planted_faults(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED)
    interpret("-q", str(tmp_path), "--rootdir", str(tmp_path))
