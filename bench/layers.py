"""The suite of layers: each row, pass, dtype and layout, by each contender, in one breath."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from bench import machine, measure
from bench.contenders import Contender
from bench.measure import Time, Work
from bench.rows import TRAINING, Row

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


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
    if name in ("input_grad", "forward"):
        return tensors[:1]
    floating = [t for t in tensors if t.is_floating_point()]
    image = name != "weight_grad" and ("input_grad" in row.passes or "weight_grad" not in row.passes)
    return floating if image else floating[1:]


def work_of(
    row: Row, name: str, by: Contender, sets: list[list[Tensor]], dtype: torch.dtype | None = None
) -> Work:
    """The pass as a call on the i-th set; incoming gradients are random numbers of dtype, the operands' own
    if None."""
    call = by.forward(row)

    def infer(i: int) -> Any:
        with torch.no_grad():
            return call(sets[i])

    if name == "inference" or (name == "forward" and row.op != "max_pool2d"):
        return by.within(infer)
    wanted = [{id(t) for t in _wanted(row, name, tensors)} for tensors in sets]
    leaves = [
        [t.detach().requires_grad_(id(t) in ids) for t in tensors]
        for tensors, ids in zip(sets, wanted, strict=True)
    ]
    if name == "forward":  # max pooling with the positions that a backward pass needs
        return by.within(lambda i: call(leaves[i]))
    prepared: list[tuple[Tensor, list[Tensor], Tensor]] = []

    def prepare(i: int) -> None:
        y = call(leaves[i])
        torch.manual_seed(i)  # the same for each contender
        dy = torch.randn(y.shape, device=y.device).to(sets[0][0].dtype if dtype is None else dtype)
        differentiated = [t for t in leaves[i] if t.requires_grad]
        prepared.append((y, differentiated, torch.empty_like(y).copy_(dy)))

    prepare = by.within(prepare)
    for i in range(len(sets)):
        prepare(i)

    def differentiate(i: int) -> Any:
        y, differentiated, dy = prepared[i]
        return torch.autograd.grad(y, differentiated, dy, retain_graph=True)

    def train(i: int) -> Any:
        _, differentiated, dy = prepared[i]
        return torch.autograd.grad(call(leaves[i]), differentiated, dy)

    return by.within(train if name == TRAINING else differentiate)


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
    row: Row, name: str, dtype: torch.dtype, layout: str, device: str, most: float, by: list[Contender]
) -> dict[str, dict[str, float]]:
    """Each contender's ‖y − y64‖ / ‖y64‖, where y64 is torch's result on the same numbers in fp64; on as many
    of the row's images as `most` operations allow. None of a contender that fails there."""
    images = row.shape[0]
    while images > 1 and images / row.shape[0] * row.operations(name) > most:
        images //= 2
    row = row.images(images)
    tensors = operands(row, dtype, LAYOUTS[layout], device)
    exact = [t.double() if t.is_floating_point() else t for t in tensors]
    found: dict[str, dict[str, float]] = {each.name: {} for each in by}
    with suppress(Exception):  # fp64 may not fit; the times are wanted all the same
        reference = work_of(row, name, Contender("torch"), [exact], dtype)(0)
        for each in by:
            with suppress(Exception):
                result = work_of(row, name, each, [tensors])(0)
                found[each.name] = {"error_fp64": _difference(result, reference)}
    return found


def measured(
    row: Row,
    name: str,
    dtype: torch.dtype,
    layout: str,
    device: str,
    *,
    by: list[Contender],
    rounds: int,
    round_seconds: float,
    more: bool = False,
) -> Iterator[dict[str, Any]]:
    """One record per contender; with more: also the errors against fp64, the memory, and on a GPU the host's
    time."""
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
        "flops": row.operations(name),
        "least_flops": row.least_operations(name),
    }
    if device == "cpu":
        base["threads"] = torch.get_num_threads()
    by = [each for each in by if each.serves(row)]
    works: dict[str, Work] = {}
    records = {each.name: base | {"by": each.name} for each in by}
    results: dict[str, Any] = {}
    for each in by:
        begin = time.perf_counter()
        try:
            works[each.name] = work_of(row, name, each, sets)
            results[each.name] = works[each.name](0)
            measure.wait(device)
        except Exception as error:
            records[each.name]["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            works.pop(each.name, None)
        else:  # the first time, with all that is compiled, loaded and looked up then
            records[each.name]["cold"] = time.perf_counter() - begin
    for contender, result in results.items():
        if contender != "torch" and "torch" in results:
            records[contender]["difference"] = _difference(result, results["torch"])
    results.clear()
    if more:
        for each, found in errors(
            *(row, name, dtype, layout, device, 1e10 if device == "cpu" else 1e12),
            [each for each in by if each.name in works],
        ).items():
            records[each] |= found
            with suppress(Exception):  # what does not fit once more has its times still
                records[each] |= measure.memory(works[each], device)
                if device == "cuda":
                    records[each]["host_seconds"] = measure.host_seconds(works[each], calls=20, rounds=3)
    timer = measure.on_gpu if device == "cuda" else measure.on_cpu
    try:
        times: dict[str, Time] = timer(works, len(sets), rounds=rounds, round_seconds=round_seconds)
    except Exception as error:
        for record in records.values():
            record.setdefault("error", f"{type(error).__name__}: {str(error)[:300]}")
        times = {}
    for contender, record in records.items():
        if contender in times:
            t = times[contender]
            record |= {"seconds": t.seconds, "low": t.low, "high": t.high, "how": t.how}
        yield record
