"""The suite of host costs: microseconds until a call on a tiny image returns, when the kernel is next to
nothing; of fastops' layers and functions, and of torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import fastops
from bench.contenders import FUNCTIONS
from bench.measure import host_seconds

LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "Conv2d": ((1, 8, 4, 4), lambda: nn.Conv2d(8, 8, 3, padding=1)),
    "MaxPool2d": ((1, 8, 4, 4), lambda: nn.MaxPool2d(2)),
    "AvgPool2d": ((1, 8, 4, 4), lambda: nn.AvgPool2d(2)),
    "AdaptiveAvgPool2d": ((1, 8, 4, 4), lambda: nn.AdaptiveAvgPool2d(1)),
    "BatchNorm2d, training": ((2, 8, 4, 4), lambda: nn.BatchNorm2d(8)),
    "BatchNorm2d, evaluation": ((2, 8, 4, 4), lambda: nn.BatchNorm2d(8).eval()),
    "Upsample, bilinear": ((1, 8, 4, 4), lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
}
CALLS: dict[str, tuple[tuple[int, ...], Callable[[Any, Tensor], Tensor]]] = {
    "max_pool2d": ((1, 8, 4, 4), lambda F, x: F.max_pool2d(x, 2)),
    "avg_pool2d": ((1, 8, 4, 4), lambda F, x: F.avg_pool2d(x, 2)),
    "interpolate": ((1, 8, 4, 4), lambda F, x: F.interpolate(x, scale_factor=2)),
}


def measured(device: str) -> Iterator[dict[str, Any]]:
    """One record per call and contender."""

    def record(call: str, by: str, work: Callable[[int], Any]) -> dict[str, Any]:
        for _ in range(20):
            work(0)
        return {"suite": "host", "call": call, "by": by, "seconds": host_seconds(work)}

    for name, (shape, make) in LAYERS.items():
        x = torch.randn(shape, device=device)
        theirs = make().to(device)
        ours = nn.Sequential(make().to(device))
        fastops.convert(ours)
        for by, layer in (("fastops", ours[0]), ("torch", theirs)):

            def inference(_: int, layer: nn.Module = layer, x: Tensor = x) -> Any:
                with torch.no_grad():
                    return layer(x)

            yield record(f"{name}, inference", by, inference)
            leaf = x.clone().requires_grad_()
            yield record(f"{name}, with a graph", by, lambda _, layer=layer, leaf=leaf: layer(leaf))
            y = layer(leaf)
            wanted = [leaf, *layer.parameters()]
            dy = torch.ones_like(y)
            yield record(
                f"{name}, backward",
                by,
                lambda _, y=y, wanted=wanted, dy=dy: torch.autograd.grad(y, wanted, dy, retain_graph=True),
            )
    for name, (shape, call) in CALLS.items():
        x = torch.randn(shape, device=device)
        for by, functions in FUNCTIONS.items():
            yield record(f"{name}()", by, lambda _, call=call, F=functions, x=x: call(F, x))


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: one line per call."""
    yield "| call | fastops µs | torch µs | ratio |"
    yield "|---|---|---|---|"
    by: dict[str, dict[str, float]] = {}
    for r in records:
        by.setdefault(r["call"], {})[r["by"]] = r["seconds"] * 1e6
    for call, both in by.items():
        ours, theirs = both["fastops"], both["torch"]
        yield f"| {call} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.2f} |"
