"""Runs in processes of its own what section concurrency asks: python -m tests.reliability.processes WHAT ...

Each prints a line of JSON per case, {"what": WHAT, "case": name, "error": what went wrong}, or a figure, or a
note, and {"what": WHAT, "done": true} at its end.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fastops
import fastops.functional as G
from fastops.backends import native
from tests.cases import Case
from tests.reliability import telling
from tests.reliability.calls import same_bits
from tests.reliability.determinism import threads
from tests.reliability.endurance import shapes, soak, threads_come_and_go
from tests.reliability.telling import little_memory, note, say, told
from tests.test_properties import LONG_CALLS, ONE_PER_OP, long_call
from tests.test_regressions import interrupted_after_each_call

FASTOPS = str(Path(fastops.__file__).parent)

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
    """Ctrl-C so many seconds after a call begins; whether it came inside it: Python raised it in a line of
    fastops, which a kernel had returned to, or was called from."""
    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
    inside = False
    try:
        timer.start()
        call()
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt as stop:
        lines = traceback.walk_tb(stop.__traceback__)
        inside = any(frame.f_code.co_filename.startswith(FASTOPS) for frame, _ in lines)
    timer.join()
    return inside


def seconds_of(call: Callable[[], Any]) -> float:
    """The fastest of three: what it takes when nothing else is in the way."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def forward_of(op: str) -> Callable[[], Tensor]:
    call, _ = long_call(op)
    return call


def backward_of(op: str) -> Callable[[], Tensor]:
    """Forward and backward."""
    call, tensors = long_call(op, requires_grad=True)

    def both() -> Tensor:
        y = call()
        return torch.autograd.grad(y, tensors[0], y.detach())[0]

    return both


def interrupt(quick: bool) -> None:
    """That most came inside a call is asked, too: others would show nothing."""
    # A shell's background jobs, and their children, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed(0)
    with told("a call of every op"):
        missing = {case.op for case in ONE_PER_OP} - set(LONG_CALLS)
        assert not missing, f"none of {', '.join(sorted(missing))}"
    times = 2 if quick else 20
    inside = dict.fromkeys(LONG_CALLS, 0)
    for op in LONG_CALLS:
        for call in (forward_of(op), backward_of(op)):
            expected, length = call(), seconds_of(call)
            for turn in range(times):
                with told(f"{op}, time {turn + 1}"):
                    inside[op] += interrupted(call, random.random() * length)
                    assert same_bits(call(), expected), "other bits after it"
        if not quick:  # of four each, all of an op's may come late by chance
            with told(f"{op}: inside calls"):
                assert inside[op] >= times / 2, f"{inside[op]} of {2 * times}, less than a quarter"
    came, of = sum(inside.values()), 2 * times * len(inside)
    fewest = min(inside, key=lambda op: inside[op])
    note(f"{came} of {of} inside a call; the fewest of an op: {fewest}, {inside[fewest]} of {2 * times}")
    with told("inside calls"):
        assert came >= of / 2, f"{came} of {of}, less than half"


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


Copies = list[list[Tensor]]


@dataclass
class Large:
    """A call of some op on tensors of tens of megabytes; its backward adds to what .grad of the inputs held
    before."""

    forward: Callable[[], Tensor]
    inputs: list[Tensor]
    running: list[Tensor]  # statistics

    def backward(self, y: Tensor) -> None:
        y.backward(y.detach())

    def held(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """What the inputs, their .grad, and the running statistics hold, to be compared and set."""
        grads = [t.grad for t in self.inputs if t.grad is not None]
        return [t.detach() for t in self.inputs], grads, self.running

    def copies(self) -> Copies:
        return [[t.clone() for t in tensors] for tensors in self.held()]

    def restore(self, copies: Copies) -> None:
        for tensors, known in zip(self.held(), copies, strict=True):
            for t, k in zip(tensors, known, strict=True):
                t.copy_(k)


def large_inputs() -> dict[str, Callable[[], Large]]:
    """For each op what makes its call."""

    def rand(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def make(op: str, shapes: tuple[tuple[int, ...], ...], **options: Any) -> Callable[[], Large]:
        def made() -> Large:
            tensors = [rand(*s).requires_grad_() for s in shapes]
            for t in tensors:
                t.grad = rand(*t.shape, seed=1)
            running: list[Tensor] = []
            arguments: list[Any] = tensors
            if op == "batch_norm":
                running = [torch.full((16,), 0.5), torch.full((16,), 2.0)]
                arguments = [tensors[0], *running, *tensors[1:]]
            if op == "max_unpool2d":
                plane = torch.arange(tensors[0][0, 0].numel()).view(tensors[0].shape[2:]) * 2
                arguments = [tensors[0], plane.expand(tensors[0].shape).contiguous()]
            return Large(partial(getattr(G, op), *arguments, **options), tensors, running)

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


def nothing_half_written(call: Large, before: Copies, after: Copies, part: str) -> None:
    inputs, grads, running = call.held()
    assert all(map(same_bits, inputs, before[0])), "inputs changed"
    # Each for itself: as it was or, of a backward, complete.
    known = before[1:2] if part == "forward" else (before[1], after[1])
    assert len(grads) == len(before[1]), "a .grad is gone"
    for i, grad in enumerate(grads):
        assert any(same_bits(grad, k[i]) for k in known), f".grad of tensor {i} is neither old nor complete"
    known = before[2] if part == "forward" else after[2]
    assert all(map(same_bits, running, known)), "running statistics of a forward that failed are not the old"


def out_of_memory(quick: bool) -> None:
    """The address space may grow by half a mebibyte during a call (4 in the quick form), then by that much
    more, and so on until the call works; first of all forwards, then of backwards alone. Which of a call's
    allocations is the one that fails is left to that."""
    torch.set_num_threads(1)
    # What is freed goes back to the system, so that no allocation is served by an earlier one's memory.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    failures = {"forward": 0, "backward": 0}
    # Of torch's allocator, not of the same op: torch 2.13's conv_transpose2d may end the process there, as
    # oneDNN does not look at what its own malloc gave (dnnl_primitive_attr_clone).
    refused = failure_of(partial(torch.empty, 1 << 30), 0)
    assert refused is not None
    for op, make in large_inputs().items():
        call = make()
        before = call.copies()
        expected = call.forward()
        call.backward(expected)
        after = call.copies()
        for part in failures:
            failed = 0
            for step in range(1000):
                call.restore(before)
                more = MEGABYTE // 2 + step * (MEGABYTE * 4 if quick else MEGABYTE // 2)
                if part == "forward":
                    error = failure_of(call.forward, more)
                else:
                    error = failure_of(partial(call.backward, call.forward()), more)
                if error is None:
                    break
                failed += 1
                with told(f"{op}, {part}, {more / MEGABYTE:.3g} MiB more"):
                    assert type(error) is type(refused), f"torch raises {refused!r}, this {error!r}"
                    nothing_half_written(call, before, after, part)
            failures[part] += failed
            with told(f"{op}, {part}, with memory again"):
                assert failed and error is None, f"{failed} failures, then {error!r}"
                call.restore(before)
                y = call.forward()
                call.backward(y)
                assert same_bits(y, expected), "another result"
                for tensors, known in zip(call.held(), after, strict=True):
                    assert all(map(same_bits, tensors, known)), "other bits"
    note(f"{failures['forward']} failures in the forward, {failures['backward']} in the backward")


def at_once(quick: bool) -> None:
    """What section concurrency asks first, in this Python, without a GIL."""
    from tests.reliability import concurrency

    with told("the GIL is off"):
        assert not sys._is_gil_enabled()  # type: ignore[attr-defined]
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
