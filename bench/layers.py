"""The suite of layers: each row, pass, dtype and layout, by fastops and by torch, in one breath."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import fastops.functional
from bench import machine, measure
from bench.measure import Time, Work
from bench.rows import Row

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
FUNCTIONS = {"fastops": fastops.functional, "torch": torch.nn.functional}


def operands(row: Row, dtype: torch.dtype, memory_format: torch.memory_format, device: str) -> list[Tensor]:
    """Random, in a layout; nothing of it zero."""

    def draw(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        t = torch.randn(shape, device=device, dtype=dtype).mul_(scale)
        return t.contiguous(memory_format=memory_format) if t.dim() == 4 else t

    tensors = [draw(row.shape)]
    if row.indices:
        n, c, h, w = row.shape
        larger = torch.rand(n, c, 2 * h, 2 * w, device=device)
        larger = larger.contiguous(memory_format=memory_format)
        tensors.append(torch.nn.functional.max_pool2d(larger, 2, return_indices=True)[1])
    for name, shape in row.operands.items():
        if row.op == "batch_norm" and name in "wb":
            tensors.append(torch.randn(shape, device=device, dtype=torch.float32))
        else:
            fan = math.prod(shape[1:]) if name == "w" else 1
            tensors.append(draw(shape, fan**-0.5))
    return tensors


def _wanted(row: Row, name: str, tensors: list[Tensor]) -> list[Tensor]:
    """What a pass differentiates with respect to."""
    if name == "input_grad":
        return tensors[:1]
    floating = [t for t in tensors if t.is_floating_point()]
    return floating[1:] if name == "weight_grad" else floating


def _work(row: Row, name: str, functions: Any, sets: list[list[Tensor]]) -> Work:
    """The pass as a call on the i-th set."""
    if name == "inference":

        def infer(i: int) -> Any:
            with torch.no_grad():
                return row.call(functions, sets[i])

        return infer
    prepared: list[tuple[Tensor, list[Tensor], Tensor]] = []
    leaves = []
    for tensors in sets:
        wanted = {id(t) for t in (_wanted(row, name, tensors) if name != "forward" else tensors[:1])}
        leaves.append([t.detach().requires_grad_(id(t) in wanted) for t in tensors])
    if name == "forward":
        if row.op == "max_pool2d":  # with the positions that a backward pass needs
            return lambda i: row.call(functions, leaves[i])
        return _work(row, "inference", functions, sets)
    for i, own in enumerate(leaves):
        y = row.call(functions, own)
        torch.manual_seed(i)  # the same for each contender
        prepared.append((y, [t for t in own if t.requires_grad], torch.randn_like(y)))

    def differentiate(i: int) -> Any:
        y, wanted, dy = prepared[i]
        return torch.autograd.grad(y, wanted, dy, retain_graph=True)

    return differentiate


def _difference(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖, the largest of the results'; infinite if there is a NaN."""
    pairs = [(ours, theirs)] if isinstance(ours, Tensor) else list(zip(ours, theirs, strict=True))
    # In parts: the fp32 copies of a large result would not fit beside it.
    worst = 0.0
    for a, b in pairs:
        norms = [0.0, 0.0]
        for u, v in zip(a.split(16), b.split(16), strict=True):
            u, v = u.detach().float(), v.detach().float()
            norms[0] += float((u - v).square().sum(dtype=torch.float64))
            norms[1] += float(v.square().sum(dtype=torch.float64))
        error = math.sqrt(norms[0] / norms[1]) if norms[1] else math.sqrt(norms[0])
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def measured(
    row: Row, name: str, dtype: torch.dtype, layout: str, device: str, *, rounds: int, round_seconds: float
) -> Iterator[dict[str, Any]]:
    """One record per contender."""
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = row.tf32
    itemsize = dtype.itemsize
    least = row.bytes(name, itemsize)
    sets_wanted = math.ceil(3 * machine.l2_bytes() / least) if device == "cuda" else math.ceil(1e8 / least)
    sets = [operands(row, dtype, LAYOUTS[layout], device) for _ in range(max(1, min(12, sets_wanted)))]
    base = {
        "row": str(row),
        "op": row.op,
        "pass": name,
        "dtype": "tf32" if row.tf32 else DTYPES[dtype],
        "layout": layout,
        "bytes": least,
        "flops": row.flops.get(name, 0.0),
    }
    works: dict[str, Work] = {}
    records = {}
    for contender, functions in FUNCTIONS.items():
        records[contender] = base | {"by": contender}
        try:
            works[contender] = _work(row, name, functions, sets)
            works[contender](0)
        except Exception as error:
            records[contender]["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            works.pop(contender, None)
    if len(works) == 2:
        ours, theirs = (work(0) for work in works.values())
        records["fastops"]["difference"] = _difference(ours, theirs)
        del ours, theirs
    timer = measure.on_gpu if device == "cuda" else measure.on_cpu
    try:
        times: dict[str, Time] = timer(works, len(sets), rounds=rounds, round_seconds=round_seconds)
    except Exception as error:
        for record in records.values():
            record.setdefault("error", f"{type(error).__name__}: {str(error)[:300]}")
        times = {}
    for contender, record in records.items():
        if contender in times:
            time = times[contender]
            record |= {"seconds": time.seconds, "low": time.low, "high": time.high, "how": time.how}
        yield record
