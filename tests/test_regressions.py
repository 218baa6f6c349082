"""What once went wrong, each with the call that showed it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fastops
import fastops.functional as G
from fastops import _C
from fastops.backends import native


def interrupted_after_each_call(run: Callable[[], Any]) -> Iterator[None]:
    """run(), interrupted after the first of its calls into C, then after the second, and so on to its end."""
    left = 0

    def look(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        if event == "c_return":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    for calls in range(1, 10_000):
        left = calls
        sys.setprofile(look)
        try:
            run()
            return
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        yield


@pytest.mark.parametrize("groups", [1, 2])
def test_a_stride_far_beyond_the_input_costs_nothing(groups: int) -> None:
    """Each stride phase of the input gradient was visited, those beyond the input too: stride² of them."""
    x = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    w = torch.randn(2, 1 if groups == 2 else 2, 2, 2, dtype=torch.float64)
    start = time.perf_counter()
    y = G.conv_transpose2d(x, w, stride=700, groups=groups)
    assert time.perf_counter() - start < 5
    torch.testing.assert_close(y, F.conv_transpose2d(x, w, stride=700, groups=groups))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_dilation_far_beyond_the_input(channels_last: bool) -> None:
    """Depthwise kernels prepared every row that a window spans: gigabytes, for three rows read."""
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    x.requires_grad_()
    w = torch.randn(8, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    options = dict(padding=1000, dilation=1000, groups=8)
    for ours, theirs in zip(
        torch.autograd.grad(G.conv2d(x, w, **options).square().sum(), (x, w)),
        torch.autograd.grad(F.conv2d(x, w, **options).square().sum(), (x, w)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_zero_tensor() -> None:
    """Forward mode's symbolic zeros have no memory: the kernel was given address 0."""
    zeros = torch._efficientzerotensor((1, 1, 4, 4))
    assert torch.equal(G.avg_pool2d(zeros, 2), torch.zeros(1, 1, 2, 2))


def test_negated_view() -> None:
    """A lazily negated tensor's memory holds the values before the negation."""
    x, w = torch.randn(4, 3, 5, 5), torch.randn(3)
    negated = torch._neg_view(w)
    torch.testing.assert_close(
        G.batch_norm(x, None, None, negated, None, True), F.batch_norm(x, None, None, -w, None, True)
    )
    torch.testing.assert_close(G.max_pool2d(torch._neg_view(x), 2), F.max_pool2d(-x, 2))


def test_a_tensor_as_an_option_is_read_at_each_call() -> None:
    """It was a key of a cache, by identity: its new value was not seen."""
    x, k = torch.randn(1, 1, 6, 6), torch.tensor(2)
    assert G.max_pool2d(x, k).shape[-1] == 3
    k.fill_(3)
    assert G.max_pool2d(x, k).shape[-1] == 2


def test_a_divisor_past_64_bits_is_refused() -> None:
    with pytest.raises(RuntimeError, match="avg_pool2d: kernel_size"):
        G.avg_pool2d(torch.randn(1, 1, 4, 4), 2**40, 1, 2**39)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(9, 0), (0, 3)])
def test_adaptive_pooling_to_nothing(
    backend: str, device: str, size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    """Compiled for AVX2 and SSE2, kernels divided by the number of columns of a row that is not there."""
    x = torch.randn(1, 4, 20, 13, device=device).contiguous(memory_format=memory_format)
    for pool in (G.adaptive_max_pool2d, G.adaptive_avg_pool2d):
        assert pool(x, size).shape == (1, 4, *size)
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(pool(leaf, size).sum(), leaf)
        assert torch.equal(dx, torch.zeros_like(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_convolution_without_input_channels(
    backend: str, device: str, memory_format: torch.memory_format
) -> None:
    """The kernels divided by the number of channels."""
    x = torch.empty(2, 0, 4, 5, device=device).contiguous(memory_format=memory_format).requires_grad_()
    w = torch.empty(16, 0, 2, 2, device=device, requires_grad=True)
    b = torch.randn(16, device=device, requires_grad=True)
    y = G.conv2d(x, w, b)
    assert torch.equal(y, b.detach().reshape(1, -1, 1, 1).expand(2, 16, 3, 4))
    dx, dw, db = torch.autograd.grad(y.sum(), (x, w, b))
    assert dx.shape == x.shape and dw.shape == w.shape
    assert torch.equal(db, torch.full_like(b, 24))


def test_a_forced_backend_is_the_thread_s_own() -> None:
    with ThreadPoolExecutor(1) as pool:
        # Its thread begins here: one that begins within the context may inherit it (Python 3.14t).
        pool.submit(int).result()
        with fastops.backend("cuda"):
            y = pool.submit(G.avg_pool2d, torch.ones(1, 1, 2, 2), 2).result()
    assert y.item() == 1


def test_without_an_openmp_runtime() -> None:
    """Threads are made anew for each region, with the same result."""
    x = torch.randn(4, 8, 32, 32)
    expected = G.avg_pool2d(x, 3)
    _C.set_min_work_per_thread(1)
    _C.set_openmp_runtime(0)
    try:
        assert torch.equal(G.avg_pool2d(x, 3), expected)
    finally:
        native._share_openmp()  # finds and sets it again
        _C.set_min_work_per_thread(16384)


@pytest.mark.parametrize("strided", [(), (0,), (1,), (0, 1)], ids=str)
def test_ctrl_c_leaves_no_half_of_the_statistics(strided: tuple[int, ...]) -> None:
    """Running statistics with gaps were copied back one after the other; Ctrl-C, for which Python looks after
    each call, could come between the two."""
    x = torch.randn(2, 3, 4, 4)
    running = [torch.ones(3, 2)[:, 0] if i in strided else torch.ones(3) for i in range(2)]
    ends = interrupted_after_each_call(lambda: G.batch_norm(x, *running, training=True))
    before, count = [t.clone() for t in running], 0
    for _ in ends:
        changed = [not torch.equal(t, b) for t, b in zip(running, before, strict=True)]
        assert changed[0] == changed[1], f"after call {count}"
        before, count = [t.clone() for t in running], count + 1
    assert count > 5


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("channels", [3, 40, 300])
def test_averages_of_large_windows(channels: int, channels_last: bool) -> None:
    """Sums were made one element after the other: of 0.1 over 224 × 224 only three digits were right."""
    x = torch.full((1, channels, 224, 224), 0.1)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for y in (G.adaptive_avg_pool2d(x, 1), G.adaptive_avg_pool2d(x, 2), G.avg_pool2d(x, 224)):
        torch.testing.assert_close(y, torch.full_like(y, 0.1), rtol=3e-6, atol=0)


DAEMON = """
import threading, time
import torch
import fastops.functional as G
from fastops.backends import launch, recorded

with recorded() as call:
    G.avg_pool2d(torch.randn(8, 64, 64, 64), 3)
((op, params, tensors),) = call.launches

def compute():
    while True:  # nothing of torch's, whose ops end the process
        launch(op, params, *tensors)

class Last:
    def __del__(self, sleep=time.sleep):
        sleep(0.5)  # Python is ending; kernels come back

last = Last()
threading.Thread(target=compute, daemon=True).start()
time.sleep(0.2)
"""


def test_python_ends_while_a_daemon_computes() -> None:
    done = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr  # "terminate called without an active exception"
