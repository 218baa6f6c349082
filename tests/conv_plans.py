"""How the convolutions of well-known networks would be planned on an H200: one row each.

``python -m tests.conv_plans > docs/conv_plans.md`` writes the table that tests/test_conv_plans.py checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from fastops import _C
from fastops.explain import GPUS
from fastops.ops import layout
from fastops.ops.conv import ConvSpec, conv_params

BF16 = torch.bfloat16


class Row(NamedTuple):
    """A convolution with a square image, kernel and options; padding None: half the kernel's reach."""

    network: str
    n: int
    c: int
    k: int
    kernel: int
    size: int
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    groups: int = 1
    dtype: torch.dtype = BF16
    tf32: bool = False

    def __str__(self) -> str:
        text = f"{self.c}→{self.k} {self.kernel}×{self.kernel}"
        text += f" s{self.stride}" if self.stride > 1 else ""
        text += f" d{self.dilation}" if self.dilation > 1 else ""
        text += f" g{self.groups}" if self.groups > 1 else ""
        precision = "" if self.dtype is BF16 else " TF32" if self.tf32 else " fp32"
        return f"{self.network} N{self.n} {text} {self.size}²{precision}"

    def params(self, memory_format: torch.memory_format) -> Any:
        before = self.dilation * (self.kernel - 1) // 2 if self.padding is None else self.padding
        out = (self.size + 2 * before - self.dilation * (self.kernel - 1) - 1) // self.stride + 1
        spec = ConvSpec(*((v, v) for v in (self.stride, before, self.dilation)), self.groups)
        return conv_params(
            spec,
            (self.n, self.c, self.size, self.size),
            (self.k, self.c // self.groups, self.kernel, self.kernel),
            (self.n, self.k, out, out),
            self.dtype,
            memory_format,
            memory_format,
            self.tf32,
        )


FP32 = dict(dtype=torch.float32)
ROWS = [
    Row("ResNet-50", 256, 3, 64, 7, 224, stride=2),
    Row("ResNet-50", 256, 64, 64, 3, 56),
    Row("ResNet-50", 256, 64, 256, 1, 56),
    Row("ResNet-50", 256, 128, 128, 3, 56, stride=2),
    Row("ResNet-50", 256, 256, 512, 1, 56, stride=2),
    Row("ResNet-50", 256, 512, 512, 3, 7),
    Row("ResNet-50", 1, 64, 64, 3, 56),
    Row("ResNet-50", 8, 64, 64, 3, 56),
    Row("VGG-16", 64, 64, 64, 3, 224),
    Row("VGG-16", 64, 256, 256, 3, 56),
    Row("VGG-16", 64, 256, 256, 3, 56, tf32=True, **FP32),
    Row("VGG-16", 64, 256, 256, 3, 56, **FP32),
    Row("U-Net", 8, 128, 64, 3, 512),
    Row("SD VAE", 1, 256, 256, 3, 512),
    Row("SD VAE", 1, 128, 3, 3, 1024),
    Row("SD U-Net", 2, 320, 320, 3, 64),
    Row("SD U-Net", 2, 1280, 1280, 3, 16),
    Row("DeepLab", 16, 2048, 256, 3, 33, dilation=12),
    Row("DeepLab", 16, 2048, 256, 3, 33, dilation=36),
    Row("ResNeXt", 128, 128, 128, 3, 56, groups=32),
    Row("PatchGAN", 16, 64, 128, 4, 128, stride=2, padding=1),
    Row("64-bit", 64, 128, 128, 3, 513, stride=2),
    Row("MobileNetV3", 256, 16, 16, 3, 112, groups=16),
    Row("MobileNetV3", 256, 72, 72, 5, 56, stride=2, groups=72),
    Row("MobileNetV3", 256, 960, 960, 5, 7, groups=960),
    Row("ConvNeXt-T", 128, 96, 96, 7, 56, groups=96),
    Row("ConvNeXt-T", 128, 768, 768, 7, 7, groups=768),
    Row("RepLKNet", 64, 384, 384, 31, 32, groups=384),
]
PASSES = {"forward": "y", "input_grad": "dx", "weight_grad": "dw"}
LAYOUTS = {"NCHW": layout.CONTIGUOUS, "NHWC": layout.CHANNELS_LAST}


def plans(row: Row, memory_format: torch.memory_format, device: Any = None) -> dict[str, Any]:
    """The plan of each pass."""
    params = row.params(memory_format)
    on = device or GPUS["H200"]
    return {name: _C.conv_plan(params, getattr(_C.ConvPass, name), on) for name in PASSES}


def describe(plan: Any) -> str:
    tile = plan.tile
    stages = f" ×{tile.stages}" if tile.stages > 1 else ""
    splits = f", {plan.splits} parts" if plan.splits > 1 else ""
    return f"{plan.kernel.name} {tile.m}×{tile.n}×{tile.k}{stages}{splits}, {100 * plan.roof:.0f} %"


def table() -> Iterator[str]:
    """Markdown."""
    yield "# How convolutions are planned"
    yield ""
    yield (
        "For an H200, by the model of `csrc/conv_cost.h`: the kernels, their tile (rows × columns × products "
        "a step, × stages of tiles in shared memory), the parts of the weight gradient's sum, and the time "
        "at the device's ceilings over the plan's time. These are predictions by which plans are chosen, not "
        "measurements. In bf16 where nothing else is said. Written by `python -m tests.conv_plans`, checked "
        'by `tests/test_conv_plans.py`; `fastops.explain(layer, x, gpu="H200")` says the same of any layer.'
    )
    yield ""
    yield "| row | layout | forward | input gradient | weight gradient |"
    yield "|---|---|---|---|---|"
    for row in ROWS:
        for name, memory_format in LAYOUTS.items():
            cells = [describe(plan) for plan in plans(row, memory_format).values()]
            yield f"| {row} | {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table()))
