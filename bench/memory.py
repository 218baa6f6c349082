"""The suite of memory: what a layer keeps for its backward pass beside its operands, and on a GPU the peak of
a forward and backward pass.

What is kept is counted on fake tensors, which have sizes and no elements: it follows from the code and the
shapes alone, on any machine and without waiting. The peak is the allocator's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import measure
from bench.contenders import FUNCTIONS
from bench.layers import DTYPES, LAYOUTS, operands
from bench.rows import ROWS, Row


def _leaves(row: Row, dtype: torch.dtype, layout: str, device: str) -> list[Tensor]:
    tensors = operands(row, dtype, LAYOUTS[layout], device)
    return [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]


def kept(row: Row, functions: Any, dtype: torch.dtype, layout: str, device: str) -> int:
    """Bytes that autograd holds after a forward pass; without operands and the result, which others hold."""
    with FakeTensorMode():
        tensors = _leaves(row, dtype, layout, device)
        held = {t.untyped_storage()._cdata for t in tensors}
        saved: list[Tensor] = []

        def pack(t: Tensor) -> Tensor:
            saved.append(t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = row.call(functions, tensors)
        held.add(y.untyped_storage()._cdata)
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in saved}
        return sum(size for storage, size in storages.items() if storage not in held)


def peak(row: Row, functions: Any, dtype: torch.dtype, layout: str) -> int:
    """Bytes that a forward and backward pass needs at most beside its operands and dy."""
    tensors = _leaves(row, dtype, layout, "cuda")
    dy = torch.ones_like(row.call(functions, tensors))  # and whatever is allocated once
    wanted = [t for t in tensors if t.requires_grad]

    def train(_: int) -> tuple[Tensor, ...]:
        return torch.autograd.grad(row.call(functions, tensors), wanted, dy)

    return measure.memory(train, "cuda")["peak"]


def measured(device: str, end: float = math.inf) -> Iterator[dict[str, Any]]:
    """One record per row, layout and contender; no new row after `end` (monotonic)."""
    for row in ROWS:
        if time.monotonic() > end:
            return
        dtype = row.dtypes[0]
        for layout in LAYOUTS:
            for by, functions in FUNCTIONS.items():
                record = {"suite": "memory", "row": str(row), "op": row.op, "layout": layout, "by": by}
                record["dtype"] = DTYPES[dtype]
                try:
                    found = {"kept": kept(row, functions, dtype, layout, device)}
                    if device == "cuda":
                        found["peak"] = peak(row, functions, dtype, layout)
                        torch.cuda.empty_cache()
                    yield record | found
                except Exception as error:
                    yield record | {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: the rows of which the contenders differ; then how many do not."""
    peaks = any("peak" in r for r in records)
    heads = ["row", "dtype", "layout", "fastops keeps MB", "torch keeps MB"]
    heads += ["fastops' peak MB", "torch's peak MB"] if peaks else []
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    by: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for r in records:
        by.setdefault((r["row"], r["dtype"], r["layout"]), {})[r["by"]] = r
    same = 0
    for key, both in by.items():
        sizes = [both[c].get(what) for what in ("kept", *(["peak"] if peaks else [])) for c in FUNCTIONS]
        if None in sizes:
            yield (
                f"| {' | '.join(key)} | " + " | ".join(r.get("error", "")[:80] for r in both.values()) + " |"
            )
        elif not peaks and abs(sizes[0] - sizes[1]) < 1e5:
            same += 1
        else:
            yield f"| {' | '.join([*key, *(f'{size / 1e6:.1f}' for size in sizes)])} |"
    if same:
        yield ""
        yield f"In {same} more cases both keep the same, to 0.1 MB."
