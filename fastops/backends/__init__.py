"""Which kernel serves a call, and why.

Backends run raw ops on real tensors; they do not differentiate, and allocate nothing but scratch memory
of their own. A *launcher* takes the params struct and the tensors of one call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastops import _C
from fastops.backends import native, triton

Launcher = Callable[..., None]

# The dtypes that kernels know.
DTYPES = {
    torch.float64: _C.DType.f64,
    torch.float32: _C.DType.f32,
    torch.float16: _C.DType.f16,
    torch.bfloat16: _C.DType.bf16,
    torch.uint8: _C.DType.u8,
}


class Choice(NamedTuple):
    """The backend that serves an op on a device, and the reason."""

    backend: str
    reason: str
    launcher: Launcher | None  # None: nothing to compute (meta tensors)


class Backend(NamedTuple):
    """Where kernels come from."""

    launcher: Callable[[str], Launcher | None]  # given an op; None: it has no kernel for it
    device_type: str  # of the tensors that it works on
    describe: Callable[[], str]  # in a few words
    why_unavailable: Callable[[], str | None] = lambda: None


# Backends by name. Tests register more, which serve where they are forced.
BACKENDS: dict[str, Backend] = {
    "cpu": Backend(native.cpu_launcher, "cpu", native.describe_cpu),
    "cuda": Backend(native.cuda_launcher, "cuda", native.describe_cuda, native.why_no_cuda),
    "triton": Backend(triton.launcher, "cuda", triton.describe, triton.why_unavailable),
}
# Of these, for a device type, the first that has a kernel serves.
SERVING = tuple(BACKENDS)
# Those whose max pooling can say where maxima are in a byte: the number of the tap inside its window.
NUMBERS_TAPS = {"cuda"}

# Forces one of the backends for GPUs: "cuda" or "triton".
ENVIRONMENT = os.environ.get("FASTOPS_BACKEND")
if ENVIRONMENT not in (None, "", *(name for name, b in BACKENDS.items() if b.device_type == "cuda")):
    raise ValueError(f"FASTOPS_BACKEND={ENVIRONMENT}: it is cuda or triton")

# Per thread (and per task of asyncio).
_forced: ContextVar[str | None] = ContextVar("fastops_backend", default=None)
# Backends for GPUs that are forced anywhere just now: autograd runs backward passes of GPU tensors in threads
# of its own, which go by the latest.
_forced_for_autograd: list[str] = []


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within this context every call of this thread is served by the backend of that name, or raises;
    backward passes that run within it, too. (Threads that begin within it inherit it where Python says so.)
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are {sorted(BACKENDS)}")
    token = _forced.set(name)
    on_gpu = BACKENDS[name].device_type == "cuda"
    if on_gpu:
        _forced_for_autograd.append(name)
    try:
        yield
    finally:
        _forced.reset(token)
        if on_gpu:
            _forced_for_autograd.remove(name)


def forced(device_type: str) -> str | None:
    """The backend that is forced for calls on such tensors in this thread."""
    name = _forced.get()
    if name is None and _forced_for_autograd and device_type == "cuda":
        in_a_backward_pass = torch._C._current_graph_task_id() != -1
        return _forced_for_autograd[-1] if in_a_backward_pass else None
    return name


_RECORDER = "recorder"


class Recording:
    """What calls do instead of computing; with a graph for autograd, or without."""

    def __init__(self, graph: bool) -> None:
        self.graph = graph
        self.launches: list[tuple[str, Any, tuple[Tensor | None, ...]]] = []  # raw ops, params, tensors
        self.made: list[Tensor] = []  # by layout.empty_like
        self.functions: list[tuple[Any, tuple[Any, ...], Any]] = []  # autograd's, arguments, results
        self.written: list[Tensor] = []  # arguments that a launch writes to
        self.more = False  # something else, that has to be done each time

    def launch(self, op: str, params: Any, *tensors: Tensor | None) -> None:
        self.launches.append((op, params, tensors))


_recording: ContextVar[Recording | None] = ContextVar("fastops_recording", default=None)
# What is recorded now, if anything is.
recording = _recording.get


@contextmanager
def recorded(graph: bool = True) -> Iterator[Recording]:
    """Within this context nothing is computed, on whatever tensors, but written down."""
    begun, before = Recording(graph), (_recording.get(), _forced.get())
    try:  # from the first change on: Ctrl-C may come after each
        _recording.set(begun)
        _forced.set(_RECORDER)
        yield begun
    finally:
        _forced.set(before[1])
        _recording.set(before[0])


def is_forced() -> bool:
    """Whether a backend is forced for any calls (or nothing is computed)."""
    return _forced.get() is not None or bool(_forced_for_autograd)


@lru_cache(maxsize=1024)
def _choose(op: str, device_type: str, forced: str | None) -> Choice:
    if forced == _RECORDER:

        def record(params: Any, *tensors: Tensor | None) -> None:
            current = recording()
            assert current is not None
            current.launch(op, params, *tensors)

        return Choice(_RECORDER, "nothing is computed", record)
    if device_type == "meta":
        return Choice("meta", "meta tensors hold no data", None)
    if forced is None and device_type == "cuda" and ENVIRONMENT:
        forced = ENVIRONMENT
    if forced:
        backend = BACKENDS[forced]
        if backend.device_type != device_type:
            why = f"the backend {forced!r}, which is forced, works on {backend.device_type} tensors"
            raise NotImplementedError(f"fastops: {op} on {device_type} tensors: {why}")
        launcher = backend.launcher(op)
        if launcher is not None:
            return Choice(forced, "forced", launcher)
        why = backend.why_unavailable() or "it has no kernel for that"
        raise NotImplementedError(f"fastops: no kernel for {op} in the backend {forced!r}: {why}")
    reasons = []
    backends = {name: BACKENDS[name] for name in SERVING}
    for name, backend in backends.items():
        if backend.device_type != device_type:
            continue
        launcher = backend.launcher(op)
        if launcher is not None:
            return Choice(name, "; ".join([*reasons, backend.describe()]), launcher)
        reasons.append(f"{name}: {backend.why_unavailable() or 'no kernel for that'}")
    supported = sorted({b.device_type for b in backends.values() if b.launcher(op)})
    raise NotImplementedError(
        f"fastops: no kernel for {op} on {device_type} tensors"
        + (f" ({'; '.join(reasons)})" if reasons else "")
        + f"; supported devices: {', '.join(supported)}. See python -m fastops.doctor"
    )


def choose(op: str, device_type: str) -> Choice:
    """Which backend serves a raw op on a device type ('cpu', 'cuda', 'meta'), and why."""
    return _choose(op, device_type, forced(device_type))


def launch(op: str, params: Any, *tensors: Tensor | None) -> None:
    """Runs a raw op on tensors that are all on the first one's device."""
    first = tensors[0]
    assert first is not None
    device_type = first.device.type
    launcher = _choose(op, device_type, forced(device_type)).launcher
    if launcher is not None:
        launcher(params, *tensors)
