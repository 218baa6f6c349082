"""Runs in processes of its own what section concurrency asks: python -m tests.reliability.processes WHAT ...

Each prints a line of JSON per case, {"what": WHAT, "case": name, "error": what went wrong}, or a figure, and
{"what": WHAT, "done": true} at its end.
"""

from __future__ import annotations

import ctypes
import gc
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
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fastops.functional as G
from fastops.backends import native
from tests.cases import Case
from tests.reliability import telling
from tests.reliability.calls import same_bits
from tests.reliability.determinism import threads
from tests.reliability.endurance import shapes, soak, threads_come_and_go
from tests.reliability.telling import memory, say, told
from tests.test_properties import LONG_CALLS, ONE_PER_OP
from tests.test_regressions import interrupted_after_each_call

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
    # A shell's background jobs, and their children, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
                running = [torch.full((16,), 0.5), torch.full((16,), 2.0)]
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
        expected = call()
        after = [t.detach().clone() for t in untouched]  # all as before, but for running statistics

        def restore(tensors: list[Tensor] = untouched, to: list[Tensor] = before) -> None:
            for t, b in zip(tensors, to, strict=True):
                t.detach().copy_(b)

        restore()
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
                found = [t.detach() for t in untouched]
                assert any(all(map(same_bits, found, whole)) for whole in (before, after)), "inputs changed"
                assert all(t.grad is None for t in untouched), "gradients were written"
            restore()
        with told(f"{op}, with memory again"):
            assert failed and error is None, f"{failed} failures, then {error!r}"
            assert all(map(same_bits, call(), expected)), "other bits"


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
    for telling.running_now in chosen:
        WHAT[telling.running_now]("--quick" in sys.argv)
        telling.record(done=True)
