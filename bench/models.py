"""The suite of models: training steps and inference of whole networks, by torch, by torch compiled, converted
to fastops, and converted with batch norms fused to what follows them; and the memory that each takes.

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


BY = ("fastops", "fused", "torch", "inductor")


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
        torch._dynamo.reset()
        # A block is compiled for each width, and for training; past a limit dynamo would leave it to eager.
        torch._dynamo.config.cache_size_limit = 64
        for by in BY:
            model = copy.deepcopy(original).to(device, dtype, memory_format=memory_format)
            if by in ("fastops", "fused"):
                fastops.convert(model, fuse=by == "fused")
            if by == "inductor":
                model.compile(dynamic=False)

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
            records = {by: case | {"by": by} for by in contenders}
            for by, work in [*contenders.items()]:
                begin = time.perf_counter()
                try:
                    work(0)
                    measure.wait(device)
                    records[by]["cold"] = time.perf_counter() - begin
                    records[by] |= measure.memory(work, device)
                except Exception as error:  # such as a compiler that is not there
                    records[by]["error"] = f"{type(error).__name__}: {str(error)[:300]}"
                    del contenders[by]
            try:
                times = timer(contenders, 1, rounds=3, round_seconds=0.1)
            except Exception as error:
                yield case | {"error": f"{type(error).__name__}: {str(error)[:300]}"}
                continue
            for by, t in times.items():
                records[by] |= {"seconds": t.seconds, "low": t.low, "high": t.high, "how": t.how}
            yield from records.values()


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: one line per model, layout and kind; times, torch's over the others', peaks of memory."""
    there = [by for by in BY if any(r.get("by") == by for r in records)]
    held = [by for by in there if any("peak" in r for r in records)]
    heads = ["model", "layout", "kind", *(f"{by} ms" for by in there)]
    heads += [f"torch ÷ {by}" for by in there if by != "torch"] + [f"{by} peak MB" for by in held]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    cases: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for r in records:
        key = (r["model"], r.get("layout", ""), r.get("kind", ""))
        if "by" in r:
            cases.setdefault(key, {})[r["by"]] = r
        else:
            yield f"| {' | '.join([*key, r['error'][:80]])} |" + " |" * (len(heads) - 4)
    for key, case in cases.items():
        seconds = {by: r["seconds"] for by, r in case.items() if "seconds" in r}
        cells = [f"{seconds[b] * 1e3:.2f}" if b in seconds else case[b].get("error", "")[:80] for b in there]
        ratios = (seconds["torch"] / seconds[b] if {b, "torch"} <= {*seconds} else None for b in there)
        cells += [f"{r:.2f}" if r else "" for r, b in zip(ratios, there, strict=True) if b != "torch"]
        cells += [f"{case[by]['peak'] / 1e6:.0f}" if "peak" in case[by] else "" for by in held]
        yield f"| {' | '.join([*key, *cells])} |"
