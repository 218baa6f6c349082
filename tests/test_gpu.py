"""What only a GPU can show: that the emulation's primitives are the hardware's; streams, devices, graphs."""

from __future__ import annotations

import ctypes
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from tests import simt
from tests.simt import build

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
needs_emulation = pytest.mark.skipif(simt.why_unavailable() is not None, reason=str(simt.why_unavailable()))

THREADS = 256
X = [(37 * i) % 97 for i in range(THREADS)]


def compile_for_gpu(source: Path, output: Path, *flags: str) -> None:
    """A file of tests/simt as a library."""
    home = build.setup_py().find_cuda_home()
    if home is None:
        pytest.skip("no nvcc")
    command = [home / "bin" / "nvcc", "-std=c++17", "-O3", "--expt-relaxed-constexpr", *flags]
    command += ["-Werror", "all-warnings", "-shared", "-Xcompiler", "-fPIC", source, "-o", output]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@lru_cache(maxsize=1)
def emulated_answers() -> torch.Tensor:
    module = simt.load("plain")
    x = torch.tensor(X, dtype=torch.int32)
    place = torch.empty(THREADS + 4, dtype=torch.int32)
    aligned = place[-(place.data_ptr() // 4) % 4 :][:THREADS].copy_(x)
    y = torch.full((module.primitives_rows, THREADS), -7, dtype=torch.int32)
    module.primitives(aligned.data_ptr(), y.data_ptr(), 0)
    return y


@needs_emulation
def test_every_primitive_answers() -> None:
    """Some answers that are easily known; all are written."""
    y = emulated_answers()
    warp = X[32:64]
    assert y[0, 32:64].tolist() == [warp[11]] * 32
    assert y[4, 32:64].tolist() == [warp[i - 3] if i % 16 >= 3 else warp[i] for i in range(32)]
    assert y[7, 32:64].tolist() == [warp[i ^ 6] for i in range(32)]
    assert y[13, 40].item() % 2**32 == sum((v % 3 == 0) << i for i, v in enumerate(warp))
    assert y[16].tolist() == [sum(v > 40 for v in X)] * THREADS
    cells = [5 + sum(X), max(X), min(X), 9, 8, (5 + THREADS) % 11]
    assert y[19:25, 0].tolist() == cells
    assert y[25, 1].item() == bin(X[1] * 2654435761 % 2**32).count("1")
    halves = torch.tensor([2048 + 0.5 * v for v in X]).half().view(torch.int16)
    assert torch.equal(y[36].short(), halves)
    assert y[48, 0].item() == X[4 * 31 + 1] and y[49, 0].item() == 0 and y[49, 1].item() == X[4 * 30 + 2]
    for row, dtype, across in ((50, torch.float16, 16), (62, torch.bfloat16, 16), (74, torch.float32, 8)):
        tile = torch.tensor([i % 29 - 14 for i in range(16 * 2 * across)], dtype=dtype).view(16, 2 * across)
        a, b = tile[:, :across], torch.cat([tile[8:, : across // 2], tile[:8, across // 2 : across]], 1).T
        product = a.float() @ b.float()
        for i in range(4):
            wanted = [
                product[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2] + (i or X[lane]) for lane in range(32)
            ]
            assert y[row + 8 + i, :32].tolist() == wanted
    rounded = [y[86 + i, 33].view(torch.float32).item() for i in range(3)]
    near = [1 + X[33] / 4096, -X[33] / 3, 1e38 * (X[33] % 4)]
    assert all(abs(r - n) <= abs(n) * 2**-11 for r, n in zip(rounded, near, strict=True))
    assert (y != -7).all()


@needs_emulation
def test_the_gpu_compiler_takes_the_primitives(tmp_path: Path) -> None:
    compile_for_gpu(build.HERE / "primitives.cu", tmp_path / "primitives.so", "-arch=sm_80")


@pytest.mark.gpu
@needs_gpu
@needs_emulation
def test_primitives_are_those_of_the_gpu(tmp_path: Path) -> None:
    library = tmp_path / "primitives.so"
    compile_for_gpu(build.HERE / "primitives.cu", library, "-arch=native")
    x = torch.tensor(X, dtype=torch.int32, device="cuda")
    expected = emulated_answers()
    y = torch.full(expected.shape, -7, dtype=torch.int32, device="cuda")
    ctypes.CDLL(str(library)).run_primitives(
        ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_void_p(0)
    )
    torch.cuda.synchronize()
    different = (y.cpu() != expected).any(dim=1).nonzero().flatten().tolist()
    assert not different, f"answers (rows) that differ: {different}"
