"""Networks as papers have them, of torch's layers: ResNet-50, VGG-16, U-Net, SegNet, ConvNeXt, MobileNetV3
and DeepLabV3. Every layer of the original is there, with fewer channels, for tests to be quick.

Where torchvision can be imported, tests/test_networks.py runs its networks, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.demo import Restorer


def conv_norm(
    c: int,
    k: int,
    size: int = 3,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    padding = dilation * (size // 2)
    conv = nn.Conv2d(c, k, size, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(k), *([] if act is None else [act(inplace=True)]))  # type: ignore[call-arg]


# ---- ResNet-50 (He et al. 2015; stride in the 3×3, as torchvision has it) ------------------------


class Bottleneck(nn.Module):
    def __init__(self, c: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and c == 4 * width
        self.downsample = None if same else conv_norm(c, 4 * width, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet50(nn.Module):
    def __init__(self, width: int = 8, classes: int = 10, dilate: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = (
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        layers, c = [], width
        for i, blocks in enumerate((3, 4, 6, 3)):
            dilated = dilate and i >= 2
            for j in range(blocks):
                stride = 2 if j == 0 and i > 0 and not dilated else 1
                layers.append(Bottleneck(c, width << i, stride, 2 ** (i - 1) if dilated else 1))
                c = 4 * (width << i)
        self.layers, self.channels = nn.Sequential(*layers), c
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(c, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.layers(self.maxpool(self.relu(self.bn1(self.conv1(x)))))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


# ---- VGG-16 with batch norm (Simonyan and Zisserman 2014) ----------------------------------------


def vgg16_bn(width: int = 8, classes: int = 10) -> nn.Sequential:
    layers: list[nn.Module] = []
    c = 3
    for i, count in enumerate((2, 2, 3, 3, 3)):
        k = width << min(i, 3)
        for _ in range(count):
            layers += [nn.Conv2d(c, k, 3, padding=1), nn.BatchNorm2d(k), nn.ReLU(inplace=True)]
            c = k
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * c, classes))


# ---- U-Net (Ronneberger et al. 2015, padded) -----------------------------------------------------


class UNet(nn.Module):
    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        sizes = [width << i for i in range(5)]
        self.down = nn.ModuleList(self.two(c, k) for c, k in zip([3, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * k, k, 2, 2) for k in reversed(sizes[:-1]))
        self.join = nn.ModuleList(self.two(2 * k, k) for k in reversed(sizes[:-1]))
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(width, classes, 1)

    @staticmethod
    def two(c: int, k: int) -> nn.Sequential:
        return nn.Sequential(*conv_norm(c, k), *conv_norm(k, k))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else self.pool(x))
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.last(x)  # type: ignore[no-any-return]


# ---- ConvNeXt-T (Liu et al. 2022) ----------------------------------------------------------------


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), LayerNorm2d(c, eps=1e-6)
        self.expand, self.act, self.reduce = nn.Conv2d(c, 4 * c, 1), nn.GELU(), nn.Conv2d(4 * c, c, 1)
        self.gamma = nn.Parameter(torch.full((c, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.reduce(self.act(self.expand(self.norm(self.depthwise(x)))))  # type: ignore[no-any-return]


def convnext(width: int = 8, classes: int = 10) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 4), LayerNorm2d(width)]
    for i, blocks in enumerate((3, 3, 9, 3)):
        k = width << i
        if i > 0:
            layers += [LayerNorm2d(k // 2), nn.Conv2d(k // 2, k, 2, 2)]
        layers += [ConvNeXtBlock(k) for _ in range(blocks)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), LayerNorm2d(8 * width), nn.Flatten(), nn.Linear(8 * width, classes)
    )


# ---- MobileNetV3-Large (Howard et al. 2019) ------------------------------------------------------


class Inverted(nn.Module):
    def __init__(
        self, c: int, hidden: int, k: int, size: int, stride: int, squeeze: bool, act: type[nn.Module]
    ) -> None:
        super().__init__()
        self.expand = conv_norm(c, hidden, 1, act=act)
        self.depthwise = conv_norm(hidden, hidden, size, stride, groups=hidden, act=act)
        self.squeeze = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, hidden // 4, 1), nn.ReLU(),
                nn.Conv2d(hidden // 4, hidden, 1), nn.Hardsigmoid(),
            )
            if squeeze
            else None
        )  # fmt: skip
        self.project, self.skip = conv_norm(hidden, k, 1, act=None), stride == 1 and c == k

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(y if self.squeeze is None else y * self.squeeze(y))
        return x + y if self.skip else y  # type: ignore[no-any-return]


def mobilenet_v3(width: int = 4, classes: int = 10) -> nn.Sequential:
    r, h = nn.ReLU, nn.Hardswish
    rows = [
        (3, 16, 16, False, r, 1), (3, 64, 24, False, r, 2), (3, 72, 24, False, r, 1),
        (5, 72, 40, True, r, 2), (5, 120, 40, True, r, 1), (5, 120, 40, True, r, 1),
        (3, 240, 80, False, h, 2), (3, 200, 80, False, h, 1), (3, 184, 80, False, h, 1),
        (3, 184, 80, False, h, 1), (3, 480, 112, True, h, 1), (3, 672, 112, True, h, 1),
        (5, 672, 160, True, h, 2), (5, 960, 160, True, h, 1), (5, 960, 160, True, h, 1),
    ]  # fmt: skip
    layers: list[nn.Module] = [conv_norm(3, 16 * width // 8, 3, 2, act=h)]
    c = 16 * width // 8
    for size, hidden, k, squeeze, act, stride in rows:
        layers.append(Inverted(c, hidden * width // 8, k * width // 8, size, stride, squeeze, act))
        c = k * width // 8
    layers += [
        conv_norm(c, 6 * c, 1, act=h),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6 * c, classes),
    ]
    return nn.Sequential(*layers)


# ---- DeepLabV3 (Chen et al. 2017) on the dilated ResNet-50 ---------------------------------------


class DeepLabV3(nn.Module):
    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.backbone = ResNet50(width, dilate=True)
        c, k = self.backbone.channels, 8 * width
        self.branches = nn.ModuleList(
            [conv_norm(c, k, 1), *(conv_norm(c, k, 3, dilation=d) for d in (12, 24, 36))]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm(c, k, 1))
        self.project = nn.Sequential(
            *conv_norm(5 * k, k, 1), nn.Dropout(0.0), *conv_norm(k, k), nn.Conv2d(k, classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.backbone.features(x)
        parts = [branch(y) for branch in self.branches]
        parts.append(F.interpolate(self.pooled(y), size=y.shape[2:], mode="bilinear"))
        return F.interpolate(self.project(torch.cat(parts, 1)), size=x.shape[2:], mode="bilinear")


# Name → (the network, the shape of an input).
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-50": (ResNet50, (2, 3, 64, 64)),
    "VGG-16-BN": (vgg16_bn, (2, 3, 64, 64)),
    "U-Net": (UNet, (2, 3, 48, 48)),
    "SegNet": (lambda: Restorer(8), (2, 3, 45, 53)),
    "ConvNeXt-T": (convnext, (2, 3, 64, 64)),
    "MobileNetV3-L": (mobilenet_v3, (2, 3, 64, 64)),
    "DeepLabV3": (DeepLabV3, (2, 3, 64, 64)),
}
