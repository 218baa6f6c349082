"""What several sections share: which backends there are, one label per op, equal bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests import conftest, interpreter, simt
from tests.cases import Case, all_cases

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def backends() -> list[str]:
    """Those that this machine can run, as the tests have them."""
    return [p if isinstance(p, str) else p.values[0] for p in conftest._parameters()]


def on_cpu_kernels(backend: str) -> bool:
    return backend == "cpu" or backend.startswith("cpu-")


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def label(case: Case) -> str:
    """The op's name: each mode of interpolation is an op, and so is what is fused to batch norm."""
    mode = case.kwargs.get("mode", "")
    antialias = " antialias" if case.kwargs.get("antialias") else ""
    return f"{case.op} {mode}{antialias}".strip() + (" fused" if case.composed else "")


def size(case: Case) -> int:
    return sum(torch.Size(s).numel() for s in case.shapes)


def by_label() -> dict[str, list[Case]]:
    """All cases that hold elements."""
    groups: dict[str, list[Case]] = {}
    for case in all_cases():
        if size(case) and all(torch.Size(s).numel() for s in case.shapes):
            groups.setdefault(label(case), []).append(case)
    return groups


def affordable(cases: Sequence[Case], backend: str, quick: bool) -> list[Case]:
    """Those that do not take a slow backend seconds each. The interpreter has what is small, or little of it
    in the quick form."""
    if backend == interpreter.NAME:
        small = [c for c in cases if not c.large and size(c) < 3000 and not interpreter.SLOW.search(str(c))]
        return small[:1] if quick else small
    if backend == simt.NAME:
        return [c for c in cases if not c.large or (not quick and size(c) < 60_000)]
    return list(cases)


def some(cases: Sequence[Case], count: int) -> list[Case]:
    """So many of them, spread evenly over the table."""
    count = min(count, len(cases))
    return [cases[i * len(cases) // count] for i in range(count)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit; of a NaN only that it is one."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    a, b = (t.detach().contiguous().masked_fill(t.isnan(), 0) for t in (a, b))
    return torch.equal(a.view(kind), b.view(kind))
