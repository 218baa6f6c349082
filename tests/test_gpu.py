"""What only a GPU can show: that the emulation's primitives are the hardware's; streams and graphs."""

from __future__ import annotations

import ctypes
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastops
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


# ---- streams and graphs -------------------------------------------------------------------------


def network() -> nn.Sequential:
    """One of each kind of layer; batch norm with its running statistics."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 8, 1),
        nn.AdaptiveAvgPool2d(1),
    )
    fastops.convert(layers)
    return layers.cuda()


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The loss, and every gradient."""
    model.zero_grad(set_to_none=True)
    loss = model(x).square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_captured_step_is_the_step(channels_last: bool, dtype: torch.dtype) -> None:
    """Forward and backward in a CUDA graph: replays, on new data, give the bits of the eager step."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    models = [network().to(dtype, memory_format=memory_format) for _ in range(2)]
    inputs = [torch.randn(4, 8, 16, 16, device="cuda", dtype=dtype) for _ in range(4)]
    inputs = [x.contiguous(memory_format=memory_format) for x in inputs]
    eager = [[t.clone() for t in step(models[0], x)] for x in inputs]
    place, stream = inputs[0].clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(models[1], place)
        models[1].load_state_dict(network().to(dtype).state_dict())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = step(models[1], place)
        models[1].load_state_dict(network().to(dtype).state_dict())
        for x, wanted in zip(inputs, eager, strict=True):
            place.copy_(x)
            graph.replay()
            torch.cuda.synchronize()
            assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))
    for a, b in zip(models[0].buffers(), models[1].buffers(), strict=True):
        if a.is_floating_point():
            assert torch.equal(a, b)


@pytest.mark.gpu
@needs_gpu
def test_work_goes_to_the_current_stream() -> None:
    """Behind a long wait on a side stream: what the default stream reads before is not yet computed."""
    model, x = network(), torch.randn(4, 8, 16, 16, device="cuda")
    with torch.no_grad():
        model.eval()
        wanted = model(x).clone()
        place = torch.zeros_like(wanted)
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            place.copy_(model(x))
        early = place.clone()  # by the default stream, which does not wait
        torch.cuda.synchronize()
    assert not early.any() and torch.equal(place, wanted)


# ---- what else of torch meets the kernels -------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
def test_memory_of_another_stream_is_not_handed_out() -> None:
    """A tensor that a kernel on another stream reads may be freed at once, after record_stream."""
    layer = fastops.Conv2d(8, 8, 3, padding=1, device="cuda")
    side = torch.cuda.Stream()
    with torch.no_grad():
        x = torch.randn(4, 8, 64, 64, device="cuda")
        wanted = layer(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)
            x.record_stream(side)
            y = layer(x)
        del x
        for _ in range(8):  # would take its memory
            torch.full((4, 8, 64, 64), float("nan"), device="cuda")
        torch.cuda.synchronize()
    assert torch.equal(y, wanted)


@pytest.mark.gpu
@needs_gpu
def test_a_step_does_not_synchronise() -> None:
    """Forward and backward without waiting for the device."""
    model, x = network(), torch.randn(4, 8, 16, 16, device="cuda")
    step(model, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_the_tensors_device_is_used() -> None:
    """Whatever the current one is."""
    model, x = network(), torch.randn(4, 8, 16, 16, device="cuda")
    wanted = step(model, x)
    for a, b in zip(step(model.to("cuda:1"), x.to("cuda:1")), wanted, strict=True):
        assert a.device.index == 1
        torch.testing.assert_close(a.to("cuda:0"), b)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend: str) -> None:
    model, x = network(), torch.randn(4, 8, 16, 16, device="cuda")
    other = network()
    compiled = torch.compile(other, backend=backend, fullgraph=True)
    other.zero_grad()
    y = compiled(x)
    y.square().sum().backward()
    for a, b in zip([p.grad for p in other.parameters()], step(model, x)[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    for a, b in zip(other.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_and_gradient_scaling(dtype: torch.dtype) -> None:
    """Each layer's result has the dtype that torch's has, and a scaled step trains."""
    ours, theirs = network(), fastops.revert(network())
    x = torch.randn(4, 8, 16, 16, device="cuda")
    dtypes: dict[str, list[torch.dtype]] = {"ours": [], "theirs": []}
    for name, model in (("ours", ours), ("theirs", theirs)):
        for layer in model:  # type: ignore[union-attr]
            layer.register_forward_hook(lambda m, i, y, name=name: dtypes[name].append(y.dtype))
        scaler = torch.amp.GradScaler("cuda")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with torch.autocast("cuda", dtype):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert dtypes["ours"] == dtypes["theirs"]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
