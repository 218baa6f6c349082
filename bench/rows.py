"""The table of the benchmark: layers of well-known networks. A new op adds its rows here.

A row says what is computed in torch's own words, a function of ``torch.nn.functional`` and its arguments, so
that the same line of code calls torch and fastops; and what it costs at least, in bytes and operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
Call = Callable[[Any, list[Tensor]], Tensor]

TRAINING = "training"  # a forward and a backward pass with all gradients
CONV, GRADIENT = ("forward", "input_grad", "weight_grad"), ("forward", "backward")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Row:
    """One layer at one size. shape: the image's, the first operand; operands: the others'. call(F, tensors)
    computes it with the functions of F. traffic, flops: the least elements moved, and operations, a pass."""

    network: str
    text: str
    op: str
    shape: Shape
    passes: tuple[str, ...]
    call: Call
    operands: dict[str, Shape] = field(default_factory=dict)
    traffic: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    positions: float = 0.0  # bytes of positions that a forward writes, or that both passes read
    dtypes: tuple[torch.dtype, ...] = (BF16, FP16, FP32)  # the first, unless others are asked for
    tf32: bool = False
    winograd: bool = False  # its products may be done with 16 of 36 multiplications, by F(2 × 2, 3 × 3)
    indices: bool = False  # the second operand is max_pool2d's positions of a larger image

    def __str__(self) -> str:
        return f"{self.network} N{self.shape[0]} {self.text}" + (" TF32" if self.tf32 else "")

    def parts(self, name: str) -> tuple[str, ...]:
        """The passes that a pass consists of."""
        return (
            tuple(p for p in self.passes if p not in (TRAINING, "inference")) if name == TRAINING else (name,)
        )

    def operations(self, name: str) -> float:
        return sum(self.flops.get(part, 0.0) for part in self.parts(name))

    def least_operations(self, name: str) -> float:
        """Those that the fastest algorithm in use needs."""
        return self.operations(name) * (16 / 36 if self.winograd else 1.0)

    def bytes(self, name: str, itemsize: int) -> float:
        """The least that a pass must move."""
        if name == TRAINING:
            return sum(self.bytes(part, itemsize) for part in self.parts(name))
        return self.traffic[name] * itemsize + (0.0 if name == "inference" else self.positions)

    def images(self, n: int, **changes: Any) -> Row:
        """The same layer on n images."""
        times, shape = n / self.shape[0], (n, *self.shape[1:])
        weights = float(math.prod(self.operands["w"])) if self.op == "conv2d" else 0.0
        return replace(
            self,
            shape=shape,
            operands={k: shape if s == self.shape else s for k, s in self.operands.items()},
            traffic={p: (t - weights) * times + weights for p, t in self.traffic.items()},
            flops={p: f * times for p, f in self.flops.items()},
            positions=self.positions * times,
            **changes,
        )


@dataclass(frozen=True)
class Conv:
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
    bias: bool = False

    def __str__(self) -> str:
        precision = "" if self.dtype is BF16 else " TF32" if self.tf32 else " fp32"
        return f"{self.network} N{self.n} {self.text}{precision}"

    @property
    def text(self) -> str:
        text = f"{self.c}→{self.k} {self.kernel}×{self.kernel}"
        text += f" s{self.stride}" if self.stride > 1 else ""
        text += f" d{self.dilation}" if self.dilation > 1 else ""
        text += f" g{self.groups}" if self.groups > 1 else ""
        return text + (" + bias" if self.bias else "") + f" {self.size}²"

    @property
    def before(self) -> int:
        """The padding."""
        return self.dilation * (self.kernel - 1) // 2 if self.padding is None else self.padding

    @property
    def out(self) -> int:
        """Rows and columns of the result."""
        return (self.size + 2 * self.before - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def row(self) -> Row:
        x, w = self.n * self.c * self.size**2, self.k * (self.c // self.groups) * self.kernel**2
        y = self.n * self.k * self.out**2
        options = dict(stride=self.stride, padding=self.before, dilation=self.dilation, groups=self.groups)
        operands = {"w": (self.k, self.c // self.groups, self.kernel, self.kernel)}
        if self.bias:
            operands["b"] = (self.k,)
        flops = 2.0 * y * (self.c // self.groups) * self.kernel**2
        # A stride beyond the kernel leaves elements unread; their gradients are written all the same.
        read = x * min(1.0, self.kernel / self.stride) ** 2
        traffic = dict.fromkeys(CONV, float(read + w + y)) | {"input_grad": float(x + w + y)}
        return Row(
            self.network,
            self.text,
            "conv2d",
            (self.n, self.c, self.size, self.size),
            (*(CONV if self.c > 4 else ("forward", "weight_grad")), TRAINING),
            lambda F, t: F.conv2d(*t, **options),
            operands,
            traffic=traffic,
            flops=dict.fromkeys(CONV, flops),
            dtypes=(BF16, FP16) if self.dtype is BF16 else (self.dtype,),
            tf32=self.tf32,
            winograd=(self.kernel, self.stride, self.dilation) == (3, 1, 1) and self.c // self.groups > 1,
        )


STRICT: dict[str, Any] = dict(dtype=FP32)
CONVS = [
    Conv("ResNet-50", 256, 3, 64, 7, 224, stride=2),
    Conv("ResNet-50", 256, 64, 64, 3, 56),
    Conv("ResNet-50", 256, 64, 256, 1, 56),
    Conv("ResNet-50", 256, 128, 128, 3, 56, stride=2),
    Conv("ResNet-50", 256, 256, 512, 1, 56, stride=2),
    Conv("ResNet-50", 256, 512, 512, 3, 7),
    Conv("ResNet-50", 1, 64, 64, 3, 56),
    Conv("ResNet-50", 8, 64, 64, 3, 56),
    Conv("VGG-16", 64, 64, 64, 3, 224),
    Conv("VGG-16", 64, 256, 256, 3, 56),
    Conv("VGG-16", 64, 256, 256, 3, 56, bias=True),
    Conv("VGG-16", 64, 256, 256, 3, 56, tf32=True, **STRICT),
    Conv("VGG-16", 64, 256, 256, 3, 56, **STRICT),
    Conv("U-Net", 8, 128, 64, 3, 512, bias=True),
    Conv("SD VAE", 1, 256, 256, 3, 512),
    Conv("SD VAE", 1, 128, 3, 3, 1024),
    Conv("SD U-Net", 2, 320, 320, 3, 64),
    Conv("SD U-Net", 2, 1280, 1280, 3, 16),
    Conv("DeepLab", 16, 2048, 256, 3, 33, dilation=12),
    Conv("DeepLab", 16, 2048, 256, 3, 33, dilation=36),
    Conv("ResNeXt", 128, 128, 128, 3, 56, groups=32),
    Conv("PatchGAN", 16, 64, 128, 4, 128, stride=2, padding=1),
    Conv("64-bit", 64, 128, 128, 3, 513, stride=2),
    Conv("MobileNetV3", 256, 16, 16, 3, 112, groups=16),
    Conv("MobileNetV3", 256, 72, 72, 5, 56, stride=2, groups=72),
    Conv("MobileNetV3", 256, 960, 960, 5, 7, groups=960),
    Conv("ConvNeXt-T", 128, 96, 96, 7, 56, groups=96),
    Conv("ConvNeXt-T", 128, 768, 768, 7, 7, groups=768),
    Conv("RepLKNet", 64, 384, 384, 31, 32, groups=384),
]


def _resampling(
    network: str, text: str, op: str, shape: Shape, out: tuple[int, int], call: Call, **more: Any
) -> Row:
    """Pooling and resizing: each element read once, each written once, either way."""
    x, y = math.prod(shape), math.prod(shape[:2]) * math.prod(out)
    more.setdefault("positions", {"max_pool2d": 1.0 * y, "max_unpool2d": 8.0 * x}.get(op, 0.0))
    traffic = dict.fromkeys((*GRADIENT, "inference"), float(x + y))
    return Row(
        network, text, op, shape, more.pop("passes", (*GRADIENT, TRAINING)), call, traffic=traffic, **more
    )


def _batch_norm(network: str, n: int, c: int, size: int, *, relu: bool = False, add: bool = False) -> Row:
    x = float(n * c * size * size)

    def call(F: Any, t: list[Tensor]) -> Tensor:
        x, w, b = t[:3]
        fused = F is not torch.nn.functional
        if relu and fused:
            return F.batch_norm(x, None, None, w, b, True, activation="relu", residual=t[3] if add else None)
        y = F.batch_norm(x, None, None, w, b, True)
        return F.relu(y + t[3] if add else y) if relu else y

    operands: dict[str, Shape] = {"w": (c,), "b": (c,)}
    if add:
        operands["residual"] = (n, c, size, size)
    text = f"{c}×{size}²" + (" + add" if add else "") + (" + ReLU" if relu else "")
    traffic = {"forward": (4 if add else 3) * x, "backward": (7 if add else 5) * x}
    return Row(
        network, text, "batch_norm", (n, c, size, size), (*GRADIENT, TRAINING), call, operands, traffic
    )


def _unpool(F: Any, t: list[Tensor]) -> Tensor:
    return F.max_unpool2d(t[0], t[1], 2, 2, 0, (360, 480))


ROWS: list[Row] = [
    *(conv.row() for conv in CONVS),
    *(
        _resampling(network, text, op, shape, out, call, **more)
        for network, text, op, shape, out, call, more in [
            (
                *("ResNet-50", "max 3×3 s2 64×112²", "max_pool2d", (256, 64, 112, 112), (56, 56)),
                lambda F, t: F.max_pool2d(t[0], 3, 2, 1),
                dict(passes=("inference", *GRADIENT, TRAINING)),
            ),
            (
                *("VGG-16", "max 2×2 s2 64×224²", "max_pool2d", (64, 64, 224, 224), (112, 112)),
                lambda F, t: F.max_pool2d(t[0], 2),
                dict(passes=("inference", *GRADIENT, TRAINING)),
            ),
            (
                *("DenseNet", "avg 2×2 s2 256×56²", "avg_pool2d", (128, 256, 56, 56), (28, 28)),
                lambda F, t: F.avg_pool2d(t[0], 2),
                {},
            ),
            (
                *("ResNet-50", "adaptive avg 2048×7²→1", "adaptive_avg_pool2d", (256, 2048, 7, 7), (1, 1)),
                lambda F, t: F.adaptive_avg_pool2d(t[0], 1),
                {},
            ),
            (
                *("PSPNet", "adaptive avg 2048×60²→6", "adaptive_avg_pool2d", (8, 2048, 60, 60), (6, 6)),
                lambda F, t: F.adaptive_avg_pool2d(t[0], 6),
                {},
            ),
            (
                *("SegNet", "unpool 64×180×240→360×480", "max_unpool2d", (8, 64, 180, 240), (360, 480)),
                _unpool,
                dict(indices=True),
            ),
        ]
    ),
    _batch_norm("ResNet-50", 256, 64, 112),
    _batch_norm("ResNet-50", 256, 2048, 7),
    _batch_norm("ResNet-50", 32, 64, 56),
    _batch_norm("ResNet-50", 256, 256, 56, relu=True),
    _batch_norm("ResNet-50", 256, 256, 56, relu=True, add=True),
    *(
        _resampling(network, text, "interpolate", shape, out, call)
        for network, text, shape, out, call in [
            (
                *("FPN", "nearest 256×100×152 ×2", (2, 256, 100, 152), (200, 304)),
                lambda F, t: F.interpolate(t[0], scale_factor=2, mode="nearest"),
            ),
            (
                *("DeepLab", "bilinear 21×129²→513²", (8, 21, 129, 129), (513, 513)),
                lambda F, t: F.interpolate(t[0], (513, 513), mode="bilinear"),
            ),
            (
                *("SD VAE", "nearest 256×512²→1024²", (1, 256, 512, 512), (1024, 1024)),
                lambda F, t: F.interpolate(t[0], scale_factor=2, mode="nearest"),
            ),
            (
                *("DINOv2", "bicubic 768×37²→16²", (1, 768, 37, 37), (16, 16)),
                lambda F, t: F.interpolate(t[0], (16, 16), mode="bicubic"),
            ),
            (
                *("CLIP", "antialias bilinear 3×1024²→224²", (64, 3, 1024, 1024), (224, 224)),
                lambda F, t: F.interpolate(t[0], (224, 224), mode="bilinear", antialias=True),
            ),
        ]
    ),
]


def rows(device: str, images: list[int]) -> list[Row]:
    """The rows of a device; on the CPU at each number of images, without those of TF32 and those of more than
    8 GFLOP or 50 million elements an image."""
    if device == "cuda":
        return ROWS
    one = [row.images(1, dtypes=(FP32, BF16)) for row in ROWS if not row.tf32]
    few = {
        str(row): row
        for row in one
        if row.operations("forward") <= 8e9 and max(row.bytes(p, 1) for p in row.parts(TRAINING)) <= 5e7
    }
    return [row.images(n) for n in images for row in few.values()]
