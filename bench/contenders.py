"""Who computes a row: fastops and torch, each as a user gets it; and, asked for, each backend of fastops
alone, torch without cudnn.benchmark, torch compiled, and other libraries where they can be imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import fastops.functional
from bench.rows import Row

FUNCTIONS = {"fastops": fastops.functional, "torch": torch.nn.functional}


@dataclass(frozen=True)
class Contender:
    """functions: what is called, with torch.nn.functional's names; around: entered about each call."""

    name: str
    functions: Any = torch.nn.functional
    around: Callable[[], AbstractContextManager[Any]] | None = None
    compiled: bool = False

    def serves(self, row: Row) -> bool:
        return hasattr(self.functions, row.op)

    def forward(self, row: Row) -> Callable[[list[Tensor]], Tensor]:
        """The row as a function of its operands."""
        call = partial(row.call, self.functions)
        if not self.compiled:
            return call
        torch._dynamo.reset()
        return torch.compile(call, dynamic=False)

    def within(self, work: Callable[[int], Any]) -> Callable[[int], Any]:
        """The work in the contender's context."""
        around = self.around
        if around is None:
            return work

        def entered(i: int) -> Any:
            with around():
                return work(i)

        return entered


@contextmanager
def _by_heuristics() -> Iterator[None]:
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _kept_graphs() -> Iterator[None]:
    """A compiled backward pass that can be called again."""
    import torch._functorch.config

    with torch._functorch.config.patch(donated_buffer=False):
        yield


def every(device: str) -> dict[str, Contender]:
    """By name, all that a device and what is installed here allow."""
    found = [Contender(name, functions) for name, functions in FUNCTIONS.items()]
    if device == "cuda":
        found += [
            Contender(f"fastops {name}", fastops.functional, partial(fastops.backend, name))
            for name in ("cuda", "triton")
        ]
        found.append(Contender("torch, heuristics", around=_by_heuristics))
        if find_spec("flag_gems") is not None:
            import flag_gems

            found.append(Contender("FlagGems", around=flag_gems.use_gems))
        if find_spec("cudnn") is not None:
            from bench import cudnn_frontend

            found.append(Contender("cudnn-frontend", cudnn_frontend))
    found.append(Contender("inductor", around=_kept_graphs, compiled=True))
    return {contender.name: contender for contender in found}


def chosen(device: str, names: str) -> list[Contender]:
    """Those that a comma-separated list names; "all": every one; the first two are always there."""
    there = every(device)
    wanted = there if names == "all" else {**FUNCTIONS, **dict.fromkeys(names.split(","))}
    if unknown := [name for name in wanted if name and name not in there]:
        raise ValueError(f"no contender {unknown} here; there are {[*there]}")
    return [there[name] for name in wanted if name]
