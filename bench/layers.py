"""The suite of layers: each row, pass, dtype and layout, by fastops and by torch, in one breath."""

from __future__ import annotations

import itertools
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


def _work(
    row: Row, name: str, functions: Any, sets: list[list[Tensor]], dtype: torch.dtype | None = None
) -> Work:
    """The pass as a call on the i-th set; incoming gradients are random numbers of dtype, the operands' own
    if None."""
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
        dy = torch.randn(y.shape, device=y.device).to(tensors[0].dtype if dtype is None else dtype)
        prepared.append((y, [t for t in own if t.requires_grad], torch.empty_like(y).copy_(dy)))

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
            wide = torch.float64 if v.dtype is torch.float64 else torch.float32
            u, v = u.detach().to(wide), v.detach().to(wide)
            norms[0] += float((u - v).square().sum(dtype=torch.float64))
            norms[1] += float(v.square().sum(dtype=torch.float64))
        error = math.sqrt(norms[0] / norms[1]) if norms[1] else math.sqrt(norms[0])
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def errors(
    row: Row, name: str, dtype: torch.dtype, layout: str, device: str, most: float
) -> dict[str, dict[str, float]]:
    """Each contender's ‖y − y64‖ / ‖y64‖, where y64 is torch's result on the same numbers in fp64; on as many
    of the row's images as `most` operations allow."""
    images = row.shape[0]
    while images > 1 and images / row.shape[0] * row.flops.get(name, 0.0) > most:
        images //= 2
    row = row.images(images)
    tensors = operands(row, dtype, LAYOUTS[layout], device)
    exact = [t.double() if t.is_floating_point() else t for t in tensors]
    reference = _work(row, name, FUNCTIONS["torch"], [exact], dtype)(0)
    return {
        by: {"error_fp64": _difference(_work(row, name, functions, [tensors])(0), reference)}
        for by, functions in FUNCTIONS.items()
    }


def peak_on_cpu(work: Work) -> dict[str, int]:
    """The most bytes that a call holds at once of torch's allocator, results included, and what of it is
    workspace. What a library takes from malloc is not seen."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = work(0)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = list(itertools.accumulate(size for _, size in sorted(changes)))
    most = max(0, *held) if held else 0
    return {"peak": most, "workspace": max(0, most - sum(t.untyped_storage().nbytes() for t in outputs))}


def measured(
    row: Row,
    name: str,
    dtype: torch.dtype,
    layout: str,
    device: str,
    *,
    rounds: int,
    round_seconds: float,
    more: bool = False,
) -> Iterator[dict[str, Any]]:
    """One record per contender; with more: also the errors against fp64 and the memory."""
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = row.tf32
    itemsize = dtype.itemsize
    least = row.bytes(name, itemsize)
    sets_wanted = math.ceil(3 * machine.l2_bytes() / least) if device == "cuda" else math.ceil(1e8 / least)
    most_sets = 12 if device == "cuda" else 100
    sets = [operands(row, dtype, LAYOUTS[layout], device) for _ in range(max(1, min(most_sets, sets_wanted)))]
    base = {
        "row": str(row),
        "op": row.op,
        "pass": name,
        "dtype": "tf32" if row.tf32 else DTYPES[dtype],
        "layout": layout,
        "bytes": least,
        "flops": row.flops.get(name, 0.0),
    }
    if device == "cpu":
        base["threads"] = torch.get_num_threads()
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
        if more:
            try:
                found = errors(row, name, dtype, layout, device, 1e10 if device == "cpu" else 1e12)
            except Exception:  # fp64 may not fit; the times are wanted all the same
                found = {by: {} for by in records}
            for contender, record in records.items():
                record |= found[contender]
                if device == "cpu":
                    record |= peak_on_cpu(works[contender])
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
