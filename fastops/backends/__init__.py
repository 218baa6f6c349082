"""Which kernel serves a call, and why.

Backends run raw ops on real tensors; they do not differentiate, and allocate nothing but scratch memory
of their own. A *launcher* takes the params struct and the tensors of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastops import _C
from fastops.backends import native

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


# Backends by name: given an op, a launcher, or None if it has none. Tests register more.
BACKENDS: dict[str, Callable[[str], Launcher | None]] = {
    "cpu": native.cpu_launcher,
    "cuda": native.cuda_launcher,
}
# Those whose max pooling can say where maxima are in a byte: the number of the tap inside its window.
NUMBERS_TAPS = {"cuda"}
# Which backends may serve a device type, best first.
CANDIDATES: dict[str, list[str]] = {"cpu": ["cpu"], "cuda": ["cuda"]}

# Per thread (and per task of asyncio). Backward passes on CPU tensors run in the thread that asks for
# them; on a GPU autograd has threads of its own, which a forced backend does not reach.
_forced: ContextVar[str | None] = ContextVar("fastops_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within this context every call is served by the backend of that name, or raises."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are {sorted(BACKENDS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


_RECORDER = "recorder"
_recorded: ContextVar[list[tuple[str, Any]]] = ContextVar("fastops_recorded")


@contextmanager
def recorded() -> Iterator[list[tuple[str, Any]]]:
    """Within this context nothing is computed, on whatever tensors; the list gets the raw op and the params
    of each launch."""
    calls: list[tuple[str, Any]] = []
    tokens = _recorded.set(calls), _forced.set(_RECORDER)
    try:
        yield calls
    finally:
        _recorded.reset(tokens[0])
        _forced.reset(tokens[1])


@lru_cache(maxsize=1024)
def _choose(op: str, device_type: str, forced: str | None) -> Choice:
    if forced == _RECORDER:
        return Choice(
            _RECORDER, "nothing is computed", lambda params, *_: _recorded.get().append((op, params))
        )
    if device_type == "meta":
        return Choice("meta", "meta tensors hold no data", None)
    names = [forced] if forced else CANDIDATES.get(device_type, [])
    for name in names:
        launcher = BACKENDS[name](op)
        if launcher is not None:
            return Choice(name, "forced" if forced else native.describe(name), launcher)
    supported = sorted({d for d, some in CANDIDATES.items() if any(BACKENDS[b](op) for b in some)})
    raise NotImplementedError(
        f"fastops: no kernel for {op} on {device_type} tensors"
        + (f" in the backend {forced!r}" if forced else "")
        + f"; supported devices: {', '.join(supported)}. See python -m fastops.doctor"
    )


def choose(op: str, device_type: str) -> Choice:
    """Which backend serves a raw op on a device type ('cpu', 'cuda', 'meta'), and why."""
    return _choose(op, device_type, _forced.get())


def launch(op: str, params: Any, *tensors: Tensor | None) -> None:
    """Runs a raw op on tensors that are all on the first one's device."""
    first = tensors[0]
    assert first is not None
    launcher = _choose(op, first.device.type, _forced.get()).launcher
    if launcher is not None:
        launcher(params, *tensors)
