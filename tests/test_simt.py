"""The emulation is put to the test: it passes kernels that are right, and finds bugs that are planted."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastops import _C
from fastops.backends import native
from tests import simt
from tests.simt import build

pytestmark = pytest.mark.skipif(simt.why_unavailable() is not None, reason=str(simt.why_unavailable()))

BLOCK, N = 64, 256
X = [float((5 * i) % 11 + 1) for i in range(N)]  # whole numbers: every order of adding is exact
BLOCKS = [X[i : i + BLOCK] for i in range(0, N, BLOCK)]
REVERSED = [v for block in BLOCKS for v in reversed(block)]
SMOOTHED = [a + b + c for a, b, c in zip([0.0, *X[:-1]], X, [*X[1:], 0.0], strict=True)]


def collectives(i: int) -> float:
    warp, block, lane = X[i // 32 * 32 :][:32], BLOCKS[i // BLOCK], i % 32
    shuffled = warp[lane // 8 * 8 + 3] + warp[lane - 3 if lane % 16 >= 3 else lane]
    shuffled += warp[lane + 5 if lane + 5 < 32 else lane] + warp[lane ^ 6]
    votes = sum(v > 4 for v in warp[lane // 16 * 16 :][:16]) + any(v > 10 for v in warp) + 2
    return shuffled + votes + sum(v > 4 for v in block) + 1


# What each kernel of simt/planted.cu computes; y is zero before.
RIGHT = {
    "missing_barrier": REVERSED,
    "early_return": REVERSED,
    "unasked": REVERSED,
    "halo": SMOOTHED,
    "short_tile": SMOOTHED,
    "diverged_shuffle": [sum(X[i : i + 32]) if i % 32 == 0 else X[i] for i in range(N)],
    "scatter_add": [sum(column) for column in zip(*BLOCKS, strict=True)],
    "missing_wait": X,
    "early_refill": X,
    "uninitialised": [sum(X[i : i + BLOCK]) if i % BLOCK == 0 else 0.0 for i in range(N)],
    "collectives": [collectives(i) for i in range(N)],
    "last_block": [sum(X), *map(sum, BLOCKS)],
}
ORDERS = ("forward", "reverse", "random")
COPIES = ("lazy", "eager", "random")

# The bug, the build and the settings that find it, and what is found: an error, or WRONG values.
WRONG = ""
FOUND = [
    # Whoever runs first reads what nobody has written: 0xFF…, a NaN.
    *[("missing_barrier", "plain", order, "lazy", WRONG) for order in ORDERS],
    ("missing_barrier", "race", "forward", "lazy", r"shared memory that nothing has written, planted.cu:\d+"),
    *[("early_return", "plain", order, "lazy", r"__syncthreads, planted.cu:\d+") for order in ORDERS],
    ("unasked", "plain", "random", "lazy", r"more than 48 KiB of shared memory, planted.cu:\d+"),
    ("halo", "asan", "random", "lazy", r"heap-buffer-overflow.* in halo_kernel"),
    ("short_tile", "asan", "random", "lazy", r"use-after-poison.* in halo_in_tile<65>"),
    ("short_tile", "plain", "random", "lazy", r"a write outside of a shared array of 260 bytes"),
    *[("diverged_shuffle", "plain", order, "lazy", r"__shfl_down_sync, planted.cu:\d+") for order in ORDERS],
    ("scatter_add", "race", "forward", "lazy", r"of global memory.*races with the write by.* of block 0"),
    # Copies that are made at once hide a missing wait, copies that are late hide one that comes too early;
    # the race detector sees both with either.
    *[("missing_wait", "plain", order, "lazy", WRONG) for order in ORDERS],
    ("missing_wait", "race", "forward", "eager", r"races with the write by an asynchronous copy"),
    *[("early_refill", "plain", "forward", copies, WRONG) for copies in COPIES],
    ("early_refill", "race", "forward", "lazy", r"a write of shared memory.*races with the read"),
    *[("uninitialised", "plain", order, "lazy", WRONG) for order in ORDERS],
    ("uninitialised", "race", "forward", "lazy", r"shared memory that nothing has written"),
    *[("collectives", "plain", order, "lazy", r"its lane is not in the mask") for order in ORDERS],
    # No CPU reorders like that: only the race detector knows.
    ("last_block", "race", "forward", "lazy", r"a read of global memory.*races with the write"),
]


def run(mode: str, kernel: str, order: str, copies: str, broken: bool) -> list[float]:
    module = simt.load(mode)
    module.configure(order, copies, 1)
    x, y = (ctypes.c_float * N)(*X), (ctypes.c_float * N)()
    getattr(module.planted, kernel)(ctypes.addressof(x), ctypes.addressof(y), N, broken)
    return list(y[: len(RIGHT[kernel])])


def run_apart(statement: str) -> subprocess.CompletedProcess[str]:
    """Runs a statement with this file's names in a process that the sanitizers may end."""
    build.build("asan")
    code = f"from tests.test_simt import *\n{statement}"
    root = Path(__file__).resolve().parent.parent
    environment = {**build.sanitized_environment(), "PYTHONPATH": os.fspath(root)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=root, check=False
    )


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    yield
    for mode in ("plain", "race"):
        simt.configure(simt.load(mode))


def check_right(mode: str) -> None:
    assert {*RIGHT} == {k for k in vars(simt.load(mode).planted) if not k.startswith("_")}
    for kernel, right in RIGHT.items():
        for order in ORDERS:
            for copies in COPIES:
                assert run(mode, kernel, order, copies, False) == right, (kernel, order, copies)


@pytest.mark.parametrize("mode", ["plain", "race"])
def test_right_kernels_pass(mode: str) -> None:
    check_right(mode)


def test_right_kernels_pass_the_sanitizers() -> None:
    done = run_apart("check_right('asan')")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("kernel", "mode", "order", "copies", "finding"), FOUND)
def test_planted_bug_is_found(kernel: str, mode: str, order: str, copies: str, finding: str) -> None:
    if mode == "asan":
        done = run_apart(f"run('asan', {kernel!r}, {order!r}, {copies!r}, True)")
        assert done.returncode != 0
        assert re.search(finding, done.stderr), done.stderr
    elif finding == WRONG:
        assert run(mode, kernel, order, copies, True) != RIGHT[kernel]
    else:
        with pytest.raises(RuntimeError, match=f"CUDA kernel planted: block .*{finding}"):
            run(mode, kernel, order, copies, True)


def test_every_bug_is_found() -> None:
    assert {kernel for kernel, *_ in FOUND} == {*RIGHT}


def test_the_gpu_compiler_takes_the_same_source(tmp_path: Path) -> None:
    home = build.setup_py().find_cuda_home()
    if home is None:
        pytest.skip("no nvcc")
    command = [home / "bin" / "nvcc", "-std=c++17", "-arch=sm_80", "-Werror", "all-warnings", "-c"]
    done = subprocess.run(
        [*command, build.HERE / "planted.cu", "-o", tmp_path / "planted.o"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_after_an_error_the_next_launch_is_right() -> None:
    with pytest.raises(RuntimeError, match=r"block \(\d, 0, 0\), thread \(\d+, 0, 0\)"):
        run("plain", "early_return", "forward", "lazy", True)
    assert run("plain", "early_return", "forward", "lazy", False) == RIGHT["early_return"]


def test_a_launch_that_no_gpu_accepts() -> None:
    def launcher(_: Any, *arguments: int) -> None:
        simt.load("plain").planted.halo(*arguments)

    with pytest.raises(
        RuntimeError, match=r"CUDA kernel planted: invalid configuration .*, with PoolParams\("
    ):
        native.run_cuda(launcher, _C.PoolParams(), 0, 0, 0, False)  # a grid without blocks


@pytest.mark.parametrize("name", ["windows", "taps"])
def test_index_arithmetic(name: str, tmp_path: Path) -> None:
    """What kernels compute of windows and taps, at numbers that no small tensor leads to."""
    program = tmp_path / name
    folders = [f"-isystem{folder}" for folder in build.cuda_includes()]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    source = ["-include", str(build.HERE / "emulation.h"), str(build.HERE / f"{name}.cpp")]
    subprocess.run([*build.compiler(), *flags, *folders, *source, "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
