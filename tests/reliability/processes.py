"""Runs in processes of its own what section concurrency asks: python -m tests.reliability.processes WHAT ...

Each prints a line of JSON per case, {"what": WHAT, "case": name, "error": what went wrong}, or a figure, and
{"what": WHAT, "done": true} at its end.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import _lru_cache_wrapper, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fastops
import fastops.functional as G
from fastops.backends import native
from tests.cases import Case
from tests.reliability.calls import same_bits
from tests.reliability.determinism import threads
from tests.test_properties import LONG_CALLS, ONE_PER_OP
from tests.test_regressions import interrupted_after_each_call

running_now = ""  # the WHAT


def record(**fields: Any) -> None:
    print(json.dumps({"what": running_now, **fields}), flush=True)


def say(case: str, error: str = "", skip: str = "") -> None:
    record(case=case, error=error, skip=skip)


def figure(value: float, unit: str) -> None:
    record(figure=value, unit=unit)


@contextmanager
def told(case: str) -> Iterator[None]:
    """Says how one case went."""
    try:
        yield
    except Exception as error:
        say(case, f"{type(error).__name__}: {error}"[:300])
    else:
        say(case)


# ---- fork, spawn, DataLoader --------------------------------------------------------------------


def forward(case: Case) -> Tensor:
    with torch.no_grad():
        y = case.call(G, *case.arguments(torch.float32))
    return y if isinstance(y, Tensor) else y[0]


def answer(queue: Any, count: int) -> None:
    """In the child: every op forward (torch's autograd does not survive a fork)."""
    with threads(count):
        queue.put([forward(case).numpy() for case in ONE_PER_OP])


def from_child(context: str, count: int) -> list[Any] | None:
    """The results of another process; None where it does not come back."""
    start = multiprocessing.get_context(context)
    queue = start.Queue()
    child = start.Process(target=answer, args=(queue, count))
    child.start()
    try:
        return queue.get(timeout=30 if context == "fork" else 90)
    except Exception:
        return None
    finally:
        child.join(5)
        if child.is_alive():
            child.kill()


def compared(found: list[Any] | None, expected: list[Tensor]) -> None:
    for i, case in enumerate(ONE_PER_OP):
        with told(str(case)):
            assert found is not None, "the process did not come back"
            assert same_bits(torch.from_numpy(found[i]), expected[i]), "other bits"


def fork_before(quick: bool) -> None:
    torch.set_num_threads(1)
    found = from_child("fork", 2)
    with threads(2):
        compared(found, [forward(case) for case in ONE_PER_OP])


def fork_after(quick: bool) -> None:
    with threads(2):
        expected = [forward(case) for case in ONE_PER_OP]
    compared(from_child("fork", 1), expected)


def fork_threads(quick: bool) -> None:
    with threads(2):
        expected = [forward(case) for case in ONE_PER_OP]
    if torch_hangs():
        say("two threads", skip="torch's own ops hang there, too: GNU's OpenMP does not survive a fork")
    else:
        compared(from_child("fork", 2), expected)


def torch_in_child(queue: Any) -> None:
    torch.set_num_threads(2)
    queue.put(F.max_pool2d(torch.ones(8, 64, 64, 64), 3).sum().item())


def torch_hangs() -> bool:
    """Whether a child that was forked after threads were used hangs in torch's own kernels."""
    torch.set_num_threads(2)
    F.max_pool2d(torch.ones(8, 64, 64, 64), 3)
    start = multiprocessing.get_context("fork")
    queue = start.Queue()
    child = start.Process(target=torch_in_child, args=(queue,))
    child.start()
    child.join(5)
    hangs = child.is_alive()
    child.kill()
    return hangs


def spawn(quick: bool) -> None:
    expected = [forward(case) for case in ONE_PER_OP]
    compared(from_child("spawn", 2), expected)


class Images(Dataset):
    """Calls an op for each item, as augmentations do."""

    def __len__(self) -> int:
        return len(ONE_PER_OP)

    def __getitem__(self, i: int) -> Tensor:
        return forward(ONE_PER_OP[i])


def data_loader(quick: bool) -> None:
    with threads(2):
        expected = [forward(case) for case in ONE_PER_OP]
    for context in ("fork", "spawn") if quick else ("fork", "spawn", "forkserver"):
        loader = DataLoader(
            Images(),
            batch_size=None,
            num_workers=1 if quick else 2,
            multiprocessing_context=context,
            timeout=90,
        )
        found = None
        with told(context):
            found = list(loader)
        for i, case in enumerate(ONE_PER_OP if found else ()):
            with told(f"{context}: {case}"):
                assert found is not None and same_bits(found[i], expected[i]), "other bits"


# ---- Ctrl-C -------------------------------------------------------------------------------------


def interrupted(call: Callable[[], Any], after: float) -> bool:
    """Ctrl-C so many seconds into a call; whether it came before the call was done."""
    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
    done = False
    try:
        timer.start()
        call()
        done = True
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        pass
    timer.join()
    return not done


def seconds_of(call: Callable[[], Any]) -> float:
    call()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def backward_of(call: Callable[[], Tensor]) -> Callable[[], Any]:
    """Forward and backward of a call on leaves that it makes itself."""

    def both() -> Tensor:
        kept: list[Tensor] = []

        def keeping(*shape: int) -> Tensor:
            kept.append(torch.full(shape, 1.0, requires_grad=True))
            return kept[-1]

        ones, torch.ones = torch.ones, keeping  # type: ignore[assignment]
        try:
            y = call()
        finally:
            torch.ones = ones
        return torch.autograd.grad(y, kept[0], y.detach())[0]

    return both


def interrupt(quick: bool) -> None:
    random.seed(0)
    inside = 0
    for op, forward_call in LONG_CALLS.items():
        for call in (forward_call, backward_of(forward_call)):
            expected, length = call(), seconds_of(call)
            for turn in range(2 if quick else 20):
                with told(f"{op}, time {turn + 1}"):
                    inside += interrupted(call, random.random() * length)
                    assert same_bits(call(), expected), "other bits after it"
    with told("in the middle of calls"):
        assert inside, "no call was interrupted"


def interrupt_statistics(quick: bool) -> None:
    """After each call into C, where Python looks for Ctrl-C; of running statistics with and without gaps."""
    x = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    for gaps in ((), (0,), (1,), (0, 1)):
        running = [torch.ones(32, 2)[:, 0] if i in gaps else torch.ones(32) for i in range(2)]
        call = partial(G.batch_norm, x, *running, training=True)
        before = [t.clone() for t in running]
        for count, _ in enumerate(interrupted_after_each_call(call)):
            with told(f"gaps in {gaps}, after call {count + 1}"):
                after = [t.clone() for t in before]
                G.batch_norm(x, *after, training=True)
                right = [all(map(same_bits, running, known)) for known in (before, after)]
                assert any(right), "neither those from before nor those from after"
            before = [t.clone() for t in running]


# ---- no memory ----------------------------------------------------------------------------------

MEGABYTE = 1 << 20
M_MMAP_THRESHOLD = -3  # of malloc.h


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """So many bytes more than there are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory(resident=False) + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def large_inputs() -> dict[str, Callable[[Any], tuple[Callable[[], Any], list[Tensor]]]]:
    """For each op, given torch's functions or fastops': a call with tensors of tens of megabytes, forward
    and backward, and what it must leave as it is where it fails."""

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def make(op: str, shapes: tuple[tuple[int, ...], ...], **options: Any) -> Any:
        def made(module: Any) -> tuple[Callable[[], Any], list[Tensor]]:
            tensors = [rand(*s) for s in shapes]
            running: list[Tensor] = []
            arguments: list[Any] = tensors
            if op == "batch_norm":
                running = [torch.zeros(16), torch.ones(16)]
                arguments = [tensors[0], *running, *tensors[1:]]
            if op == "max_unpool2d":
                plane = torch.arange(tensors[0][0, 0].numel()).view(tensors[0].shape[2:]) * 2
                arguments = [tensors[0], plane.expand(tensors[0].shape).contiguous()]

            def call() -> Any:
                y = getattr(module, op)(*arguments, **options)
                return torch.autograd.grad(y, tensors, y.detach())

            return call, [*tensors, *running]

        return made

    x = (2, 16, 256, 256)  # 8 MiB
    return {
        "conv2d": make("conv2d", (x, (16, 16, 3, 3), (16,)), padding=1),
        "conv2d depthwise": make("conv2d", (x, (16, 1, 3, 3), (16,)), padding=1, groups=16),
        "conv_transpose2d": make("conv_transpose2d", ((2, 16, 128, 128), (16, 16, 2, 2)), stride=2),
        "max_pool2d": make("max_pool2d", (x,), kernel_size=3, stride=1, padding=1),
        "avg_pool2d": make("avg_pool2d", (x,), kernel_size=3, stride=1, padding=1),
        "adaptive_avg_pool2d": make("adaptive_avg_pool2d", (x,), output_size=200),
        "adaptive_max_pool2d": make("adaptive_max_pool2d", (x,), output_size=200),
        "max_unpool2d": make("max_unpool2d", ((2, 16, 128, 128),), kernel_size=2),
        "batch_norm": make("batch_norm", (x, (16,), (16,)), training=True),
        "interpolate": make("interpolate", ((2, 16, 128, 128),), scale_factor=2, mode="bilinear"),
    }


def failure_of(call: Callable[[], Any], more: int) -> BaseException | None:
    # Without what is kept for the next call.
    native._scratch.__dict__.clear()
    gc.collect()
    try:
        with little_memory(more):
            call()
    except Exception as error:
        return error
    return None


def out_of_memory(quick: bool) -> None:
    """From no memory at all upwards, until there is enough."""
    torch.set_num_threads(1)
    # What is freed goes back to the system, so that no allocation is served by an earlier one's memory.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    for op, make in large_inputs().items():
        of_torch, _ = make(F)
        torch_type = type(failure_of(of_torch, MEGABYTE))
        call, untouched = make(G)
        before = [t.detach().clone() for t in untouched]
        call()  # (which updates running statistics)
        expected = call()
        for t, b in zip(untouched, before, strict=True):
            t.detach().copy_(b)
        failed = 0
        for step in range(1000):
            more = MEGABYTE // 2 + step * (MEGABYTE * 4 if quick else MEGABYTE // 2)
            error = failure_of(call, more)
            if error is None:
                break
            failed += 1
            with told(f"{op}, {more / MEGABYTE:.3g} MiB more"):
                assert type(error) is torch_type, f"torch raises {torch_type.__name__}, this {error!r}"
                # The statistics are new where the forward had its memory, and the backward had not.
                changed = [not same_bits(t.detach(), b) for t, b in zip(untouched, before, strict=True)]
                assert not any(changed[: len(changed) - (2 if op == "batch_norm" else 0)]), "inputs changed"
                assert len(set(changed[-2:])) == 1 or op != "batch_norm", "half of the statistics changed"
                assert all(t.grad is None for t in untouched), "gradients were written"
            for t, b in zip(untouched, before, strict=True):
                t.detach().copy_(b)
        with told(f"{op}, with memory again"):
            assert failed and error is None, f"{failed} failures, then {error!r}"
            assert all(map(same_bits, call(), expected)), "other bits"


# ---- for a long time ----------------------------------------------------------------------------


def memory(resident: bool = True) -> int:
    """Bytes: resident, or of address space."""
    pages = Path("/proc/self/statm").read_text().split()[resident]
    return int(pages) * resource.getpagesize()


class Net(nn.Module):
    """Every layer once."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            fastops.Conv2d(3, 8, 3, padding=1), fastops.BatchNorm2d(8), nn.ReLU(), fastops.AvgPool2d(2)
        )
        self.pool = fastops.MaxPool2d(2, return_indices=True)
        self.unpool = fastops.MaxUnpool2d(2)
        self.up = nn.Sequential(
            fastops.ConvTranspose2d(8, 8, 2, stride=2),
            fastops.Upsample(scale_factor=2, mode="bilinear"),
            fastops.AdaptiveAvgPool2d(4),
            fastops.AdaptiveMaxPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y, indices = self.pool(self.down(x))
        return self.up(self.unpool(y, indices))


def soak(quick: bool) -> None:
    """The growth of resident memory over the second half of the steps."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    steps = 200 if quick else 10_000
    x = torch.randn(4, 3, 32, 32)
    half = 0
    for step in range(steps):
        if step == steps // 2:
            gc.collect()
            half = memory()
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    gc.collect()
    grown = (memory() - half) / 1024
    with told(f"{steps} steps"):
        if not quick:  # there it is noise
            figure(grown * 1000 / (steps / 2), "kB per 1,000 steps")
        assert grown < (1024 if quick else 2048), f"{grown:.0f} kB in {steps // 2} steps"
        assert all(p.isfinite().all() for p in net.parameters())


def caches() -> list[Any]:
    gc.collect()
    found = [o for o in gc.get_objects() if isinstance(o, _lru_cache_wrapper)]
    return [o for o in found if str(getattr(o, "__module__", "")).startswith("fastops")]


def shapes(quick: bool) -> None:
    """Ever new sizes and options; fuller than full caches must not grow."""
    torch.set_num_threads(1)
    count = 400 if quick else 10_000
    half = 0
    with torch.no_grad():
        for i in range(count):
            if i == count - count // 4:
                gc.collect()
                half = memory()
            h, w = 4 + i % 97, 4 + i // 97
            x = torch.zeros(1, 2, h, w)
            y, indices = G.max_pool2d(x, 2, return_indices=True)
            G.max_unpool2d(y, indices, 2, output_size=(h, w))
            G.avg_pool2d(x, 3, 1 + i % 3, 1)
            G.adaptive_avg_pool2d(x, (1 + i % h, 2))
            G.adaptive_max_pool2d(x, (1 + i % h, 2))
            G.conv2d(x, torch.zeros(3, 2, 3, 3), padding=i % 5)
            G.conv_transpose2d(x, torch.zeros(2, 3, 2, 2), stride=1 + i % 3)
            G.batch_norm(x, None, None, training=True)
            G.interpolate(x, size=(1 + i % 50, 2 + i // 50), mode="bilinear")
    gc.collect()
    grown = (memory() - half) / 1024
    full = 0
    for cache in caches():
        info = cache.cache_info()
        full += info.maxsize is not None and info.currsize == info.maxsize
        with told(f"the cache of {cache.__module__}.{cache.__name__}"):
            # One for each of a few names is bounded by these.
            assert info.maxsize is not None or info.currsize < 64, f"{info.currsize} entries, no limit"
    with told(f"{count} shapes"):
        if not quick:
            figure(grown * 1000 / (count / 4), "kB per 1,000 shapes")
            assert full, "no cache was filled"
            assert grown < 4096, f"{grown:.0f} kB in {count // 4} shapes"


def threads_come_and_go(quick: bool) -> None:
    """Each has scratch memory of its own while it lives."""
    x, w = torch.randn(1, 64, 56, 56), torch.randn(128, 64, 3, 3)
    count = 40 if quick else 1000
    half = 0
    for i in range(count):
        if i == count // 2:
            gc.collect()
            half = memory()
        thread = threading.Thread(target=G.conv2d, args=(x, w))
        thread.start()
        thread.join()
    gc.collect()
    grown = (memory() - half) / 1024
    with told(f"{count} threads"):
        if not quick:
            figure(grown * 1000 / (count / 2), "kB per 1,000 threads")
        assert grown < 16 * 1024, f"{grown:.0f} kB in {count // 2} threads"


def at_once(quick: bool) -> None:
    """What section concurrency asks first, in this Python."""
    from tests.reliability import concurrency

    for line in concurrency.at_once("cpu", quick, False):
        say(line.what, "; ".join(line.failures))


WHAT: dict[str, Callable[[bool], None]] = {
    "fork_before": fork_before,
    "fork_after": fork_after,
    "fork_threads": fork_threads,
    "spawn": spawn,
    "data_loader": data_loader,
    "interrupt": interrupt,
    "interrupt_statistics": interrupt_statistics,
    "out_of_memory": out_of_memory,
    "soak": soak,
    "shapes": shapes,
    "threads": threads_come_and_go,
    "at_once": at_once,
}

if __name__ == "__main__":
    chosen = [name for name in sys.argv[1:] if name != "--quick"]
    for running_now in chosen:
        WHAT[running_now]("--quick" in sys.argv)
        record(done=True)
