"""The suite of models: training steps and inference of whole networks, by torch, converted to fastops, and
converted with batch norms fused to what follows them.

The networks are those of tests/networks.py in their papers' widths, and a SegNet. Weights and images are
random; bf16 throughout on a GPU, fp32 on the CPU, channels_last and contiguous.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import fastops
from bench import measure
from bench.layers import DTYPES, LAYOUTS
from tests.networks import ResNet50, UNet, convnext


class SegNet(nn.Module):
    """VGG-like encoder; a decoder that unpools to where the maxima came from."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512)) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            convs = [(a, b), (b, b)]
            layers: list[nn.Module] = []
            for i, o in convs:
                layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
            return nn.Sequential(*layers)

        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(block(a, b) for a, b in pairs)
        self.up = nn.ModuleList(block(b, max(a, 16)) for a, b in reversed(pairs))
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = []
        for block in self.down:
            x = block(x)
            size = x.shape[-2:]
            x, where = self.pool(x)
            places.append((where, size))
        for block, (where, size) in zip(self.up, reversed(places), strict=True):
            x = block(self.unpool(x, where, output_size=size))
        return self.head(x)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    # how it is made, images on a GPU, images on the CPU
    "ResNet-50": (lambda: ResNet50(64, 1000), (128, 3, 224, 224), (2, 3, 224, 224)),
    "SegNet": (SegNet, (16, 3, 256, 256), (1, 3, 64, 64)),
    "U-Net": (lambda: UNet(64), (8, 3, 256, 256), (1, 3, 64, 64)),
    "ConvNeXt-T": (lambda: convnext(96, 1000), (64, 3, 224, 224), (2, 3, 224, 224)),
}


def measured(device: str, end: float = math.inf) -> Iterator[dict[str, Any]]:
    """One record per model, layout, kind of run and contender; no new model after `end` (monotonic)."""
    timer = measure.on_gpu if device == "cuda" else measure.on_cpu
    for layout, (name, (make, on_gpu, on_cpu)) in itertools.product(("NHWC", "NCHW"), MODELS.items()):
        if time.monotonic() > end:
            return
        memory_format = LAYOUTS[layout]
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        base = {"suite": "models", "model": name, "dtype": DTYPES[dtype], "layout": layout}
        original = make()
        shape = on_gpu if device == "cuda" else on_cpu
        works: dict[str, dict[str, measure.Work]] = {"training": {}, "inference": {}}
        x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=memory_format)
        for by in ("fastops", "fused", "torch"):
            model = copy.deepcopy(original).to(device, dtype, memory_format=memory_format)
            if by != "torch":
                fastops.convert(model, fuse=by == "fused")

            def train(_: int, model: nn.Module = model, x: Tensor = x) -> None:
                model.train()
                model.zero_grad(set_to_none=True)
                model(x).float().square().mean().backward()

            def infer(_: int, model: nn.Module = model, x: Tensor = x) -> Tensor:
                model.eval()
                with torch.no_grad():
                    return model(x)

            works["training"][by], works["inference"][by] = train, infer
        for kind, contenders in works.items():
            case = base | {"kind": kind, "images": shape[0]}
            try:
                times = timer(contenders, 1, rounds=3, round_seconds=0.1)
            except Exception as error:
                yield case | {"error": f"{type(error).__name__}: {str(error)[:300]}"}
                continue
            for by, t in times.items():
                yield case | {"by": by, "seconds": t.seconds, "low": t.low, "high": t.high, "how": t.how}


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: one line per model, layout and kind."""
    ours = [by for by in ("fastops", "fused") if any(r.get("by") == by for r in records)]
    heads = ["model", "layout", "kind", *(f"{by} ms" for by in (*ours, "torch"))]
    heads += ["ratio"] if len(ours) < 2 else [f"torch ÷ {by}" for by in ours]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    by: dict[tuple[str, ...], dict[str, float]] = {}
    for r in records:
        if "error" in r:
            cells = [r["model"], r.get("layout", ""), r.get("kind", ""), r["error"][:80]]
            yield f"| {' | '.join(cells)} |" + " |" * (len(heads) - len(cells))
            continue
        by.setdefault((r["model"], r["layout"], r["kind"]), {})[r["by"]] = r["seconds"] * 1e3
    for key, times in by.items():
        cells = [*key, *(f"{times[name]:.2f}" for name in (*ours, "torch"))]
        cells += [f"{times['torch'] / times[name]:.2f}" for name in ours]
        yield f"| {' | '.join(cells)} |"
