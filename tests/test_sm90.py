"""The primitives of sm_90a against Python: in the emulation, and on a GPU that has them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import simt
from tests.simt import build

ROWS, PIXELS = 24, 32  # of simt/sm90.h
DTYPES = [torch.float16, torch.bfloat16]
ORDERS, COPIES = ("forward", "reverse", "random"), ("lazy", "eager", "random")
HAS_SM90 = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers, never zero: what is out of bounds shows."""
    values = torch.randint(1, 8, shape, generator=torch.Generator().manual_seed(seed)).float()
    return values * (1 - 2 * (torch.arange(values.numel()).view(shape) % 3 == 0).float())


@lru_cache(maxsize=1)
def on_gpu() -> Any:
    """simt/sm90.cu, compiled for the GPU."""
    home = build.setup_py().find_cuda_home()
    if home is None:
        pytest.skip("no nvcc")
    library = build.BUILD / "sm90.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    command = [home / "bin" / "nvcc", "-std=c++17", "-O3", "-arch=sm_90a", "--shared", "-Xcompiler=-fPIC"]
    subprocess.run([*command, build.HERE / "sm90.cu", "-o", library], check=True)
    return ctypes.CDLL(os.fspath(library))


class Runner:
    """Where the kernels run: calls them with tensors, on the CPU before and after."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, name: str, x: list[Tensor], y: Tensor, *arguments: Any, bfloat: bool) -> Tensor:
        tensors = [t.to(self.device) for t in (*x, y)]
        addresses = [t.data_ptr() for t in tensors]
        if self.device == "cpu":
            getattr(simt.load().sm90, name)(*addresses, *arguments, bfloat, 0)
        else:
            wide = [ctypes.c_void_p(a) for a in addresses]
            rest = [a if isinstance(a, ctypes.c_void_p) else ctypes.c_int64(a) for a in arguments]
            if name == "matmul":
                rest[-2:] = ctypes.c_bool(arguments[-2]), ctypes.c_int(arguments[-1])
            getattr(on_gpu(), f"run_{name}")(*wide, *rest, ctypes.c_bool(bfloat), ctypes.c_void_p(0))
            torch.cuda.synchronize()
        return tensors[-1].cpu()


@pytest.fixture(
    params=[
        *(["cpu"] if simt.why_unavailable() is None else []),
        *([pytest.param("cuda", marks=pytest.mark.gpu)] if HAS_SM90 else []),
    ]
)
def run(request: pytest.FixtureRequest) -> Iterator[Runner]:
    yield Runner(request.param)
    if request.param == "cpu":
        simt.configure(simt.load())


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_dtype
@pytest.mark.parametrize(
    ("size", "first"),
    [
        ((3, 20, 72), (0, 0, 0)),
        ((3, 20, 72), (2, 15, 8)),  # beyond all three ends
        ((3, 20, 72), (-1, -3, -16)),
        ((1, 5, 8), (0, 0, 0)),
    ],
)
def test_tiled_copy(size: tuple[int, ...], first: tuple[int, ...], dtype: torch.dtype, run: Runner) -> None:
    x, box = whole(*size).to(dtype), (2, ROWS // 2, 64)
    wanted = torch.zeros(box, dtype=dtype)
    low = [max(0, f) for f in first]
    high = [min(s, f + b) for s, f, b in zip(size, first, box, strict=True)]
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    wanted[tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))] = x[inside]
    y = torch.full((ROWS, 64), 99, dtype=dtype)
    found = run("tiled", [x], y, *size, *first, bfloat=dtype == torch.bfloat16)
    assert torch.equal(found, wanted.view(ROWS, 64))


# n, c, h, w, kernel, stride, pad, dilation
IMAGES = [
    (2, 64, 7, 9, (3, 3), (1, 1), (1, 1), (1, 1)),
    (3, 72, 6, 5, (3, 2), (2, 1), (1, 0), (1, 2)),
    (2, 8, 9, 9, (1, 1), (2, 2), (0, 0), (1, 1)),  # the last column begins no window
    (1, 16, 11, 12, (3, 3), (3, 2), (4, 3), (2, 3)),  # windows that see nothing but zeros
    (4, 64, 4, 4, (4, 4), (1, 1), (0, 0), (1, 1)),  # a window for an image
]


@every_dtype
@pytest.mark.parametrize("image", IMAGES, ids=lambda i: "x".join(map(str, i[:4])))
def test_im2col_copy(image: Any, dtype: torch.dtype, run: Runner) -> None:
    n, c, h, w, kernel, stride, pad, dilation = image
    x = whole(n, h, w, c).to(dtype)
    out = [
        (size + 2 * p - (k - 1) * d - 1) // s + 1
        for size, k, s, p, d in zip((h, w), kernel, stride, pad, dilation, strict=True)
    ]
    params = (ctypes.c_int64 * 10)(n, c, h, w, *out, *stride, *pad)
    windows = n * out[0] * out[1]

    def pixel(window: int, tap: tuple[int, int], channel: int) -> Tensor:
        values = torch.zeros(64, dtype=dtype)
        i, row, column = window // (out[0] * out[1]), window // out[1] % out[0], window % out[1]
        at_h = row * stride[0] - pad[0] + tap[0] * dilation[0]
        at_w = column * stride[1] - pad[1] + tap[1] * dilation[1]
        if i < n and 0 <= at_h < h and 0 <= at_w < w:
            here = x[i, at_h, at_w, channel : channel + 64]
            values[: len(here)] = here
        return values

    for first in {0, windows // 2, max(0, windows - 5)}:
        for channel in range(0, c, 64):
            for tap in {(0, 0), (kernel[0] - 1, 0), (kernel[0] - 1, kernel[1] - 1)}:
                wanted = torch.stack([pixel(first + i, tap, channel) for i in range(PIXELS)])
                more = [t * d for t, d in zip(tap, dilation, strict=True)]
                address: Any = ctypes.addressof(params)
                if run.device != "cpu":
                    address = ctypes.c_void_p(address)
                y = torch.full((PIXELS, 64), 99, dtype=dtype)
                found = run("im2col", [x], y, address, first, channel, *more, bfloat=dtype == torch.bfloat16)
                assert torch.equal(found, wanted), (first, channel, tap)


def matmul(
    run: Runner, m: int, n: int, k: int, dtype: torch.dtype, bug: int = 0, *, across: bool = False
) -> tuple[Tensor, Tensor]:
    """What the kernel says, and what is right: whole numbers, so that every order of adding is exact."""
    a, b = whole(m, k).to(dtype), whole(n, k, seed=1).to(dtype)
    y = torch.full((m, n), float("nan"))
    operands = [t.T.contiguous() if across else t for t in (a, b)]
    found = run("matmul", operands, y, m, n, k, across, bug, bfloat=dtype == torch.bfloat16)
    return found, a.float() @ b.float().T


@every_dtype
@pytest.mark.parametrize("k", [16, 64, 200, 448])
@pytest.mark.parametrize("n", [64, 128, 256])
@pytest.mark.parametrize("across", [False, True], ids=["along", "across"])
def test_matmul(across: bool, n: int, k: int, dtype: torch.dtype, run: Runner) -> None:
    found, wanted = matmul(run, 128, n, k, dtype, across=across)
    assert torch.equal(found, wanted)


emulated = pytest.mark.skipif(simt.why_unavailable() is not None, reason=str(simt.why_unavailable()))


@pytest.fixture
def hostile() -> Iterator[Callable[[str, str, str], Runner]]:
    """The emulation of a mode with other settings than the environment's."""

    def configured(mode: str, order: str, copies: str) -> Runner:
        module = simt.load(mode)
        module.configure(order, copies, 1)

        class OfMode(Runner):
            def __call__(
                self, name: str, x: list[Tensor], y: Tensor, *arguments: Any, bfloat: bool
            ) -> Tensor:
                addresses = [t.data_ptr() for t in (*x, y)]
                getattr(module.sm90, name)(*addresses, *arguments, bfloat, 0)
                return y

        return OfMode("cpu")

    yield configured
    for mode in ("plain", "race"):
        simt.configure(simt.load(mode))


@emulated
@pytest.mark.parametrize("mode", ["plain", "race"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("copies", COPIES)
def test_ring_is_right(mode: str, order: str, copies: str, hostile: Callable[..., Runner]) -> None:
    found, wanted = matmul(hostile(mode, order, copies), 64, 64, 320, torch.bfloat16)
    assert torch.equal(found, wanted)


PARITY, EXPECT, WAIT, RELEASE, FENCE, ACCUMULATORS, BYTES = range(1, 8)  # sm90.h
WRONG = ""  # values
FOUND = [
    *[(PARITY, "plain", order, "lazy", r"more arrivals than the phase has") for order in ORDERS],
    *[(PARITY, "plain", order, "eager", r"deadlock: .*barrier_wait, sm90.cu:\d+") for order in ORDERS],
    *[(EXPECT, "plain", order, "lazy", r"ends, while copies of tensors are under way") for order in ORDERS],
    *[(EXPECT, "plain", order, "eager", r"deadlock: .*barrier_wait, sm90.cu:\d+") for order in ORDERS],
    *[(RELEASE, "plain", order, "lazy", r"more arrivals than the phase has|deadlock") for order in ORDERS],
    *[(FENCE, "plain", order, "random", r"no fence_barrier_init") for order in ORDERS],
    *[(ACCUMULATORS, "plain", order, copies, WRONG) for order in ORDERS for copies in COPIES],
    *[(BYTES, "plain", order, copies, r"deadlock: .*barrier_wait") for order in ORDERS for copies in COPIES],
    (WAIT, "race", "forward", "lazy", r"of shared memory.*races with the read"),
]


@emulated
@pytest.mark.parametrize(("bug", "mode", "order", "copies", "finding"), FOUND)
def test_planted_bug_is_found(
    bug: int, mode: str, order: str, copies: str, finding: str, hostile: Callable[..., Runner]
) -> None:
    run = hostile(mode, order, copies)
    if finding == WRONG:
        found, wanted = matmul(run, 64, 64, 320, torch.bfloat16, bug)
        assert not torch.equal(found, wanted)
    else:
        with pytest.raises(RuntimeError, match=f"CUDA kernel matmul: block .*{finding}"):
            matmul(run, 64, 64, 320, torch.bfloat16, bug)


def test_the_gpu_compiler_takes_the_same_source(tmp_path: Path) -> None:
    home = build.setup_py().find_cuda_home()
    if home is None:
        pytest.skip("no nvcc")
    for arch in ("80", "90a"):
        command = [home / "bin" / "nvcc", "-std=c++17", f"-arch=sm_{arch}", "-Werror", "all-warnings", "-c"]
        done = subprocess.run(
            [*command, build.HERE / "sm90.cu", "-o", tmp_path / "sm90.o"], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
