"""Whole networks: converted, compared with torch in values and in every gradient, eagerly and compiled."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastops
from tests.networks import NETWORKS

Make = Callable[[], nn.Module]


def torchvision_networks() -> dict[str, tuple[Make, tuple[int, ...]]]:
    """torchvision's own, where it can be imported: beside a torch without CUDA its wheel's library does not
    load, and it then misses an op that none of these networks calls."""
    try:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import models
    except (ImportError, RuntimeError):
        return {}
    torchvision_networks.library = library  # type: ignore[attr-defined]  (it lives as long as this)
    image = (2, 3, 64, 64)
    segmentation: dict[str, Any] = dict(weights=None, weights_backbone=None, num_classes=3)
    return {
        "torchvision resnet50": (models.resnet50, image),
        "torchvision vgg16_bn": (lambda: models.vgg16_bn(num_classes=10), image),
        "torchvision convnext_tiny": (models.convnext_tiny, image),
        "torchvision mobilenet_v3_large": (models.mobilenet_v3_large, image),
        "torchvision deeplabv3_resnet50": (
            lambda: models.segmentation.deeplabv3_resnet50(**segmentation), image,
        ),
    }  # fmt: skip


ALL = {**NETWORKS, **torchvision_networks()}
LONG = [name for name in ALL if name.startswith("torchvision")]
every_network = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in ALL]
)


def step(model: nn.Module, forward: Any, x: Tensor) -> dict[str, Tensor]:
    """Result, gradients and state by name. Dropout draws the same in all of them."""
    torch.manual_seed(1)
    x = x.detach().clone().requires_grad_()
    y = forward(x)
    y = y["out"] if isinstance(y, dict) else y
    y.float().square().mean().backward()
    found = {"result": y.detach(), "gradient of x": x.grad}
    found |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    found |= {f"state of {n}": b for n, b in model.named_buffers()}
    return found  # type: ignore[return-value]


def distance(a: Tensor, b: Tensor) -> float:
    """Of two tensors, by the size of the second."""
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


def assert_as_near(found: dict[str, Tensor], torchs: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """As near to fp64 as torch is: twice its distance or a few roundings in every tensor, and on average."""
    assert found.keys() == torchs.keys()
    distances = []
    for what, value in found.items():
        assert value.dtype == torchs[what].dtype
        # (A bias before a batch norm has no gradient but noise; and where torch itself is lost, distances of
        # small tensors tell nothing.)
        theirs = distance(torchs[what], exact[what])
        if exact[what].double().norm() > 1e-6 and theirs < 0.25:
            ours = distance(value, exact[what])
            roundings = 64 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0
            assert ours <= 2 * theirs + roundings, what
            distances.append((ours, theirs))
    assert distances
    assert sum(o for o, _ in distances) <= 1.5 * sum(t for _, t in distances) + roundings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@every_network
def test_network(name: str, dtype: torch.dtype) -> None:
    make, shape = ALL[name]
    torch.manual_seed(0)
    theirs = make().to(dtype)
    x = torch.randn(shape).to(dtype)
    reference, ours, fused = copy.deepcopy(theirs).double(), copy.deepcopy(theirs), copy.deepcopy(theirs)
    report = fastops.convert(ours)
    assert report.swapped and not report.left, report
    fastops.convert(fused, fuse=True)
    exact, torchs = step(reference, reference, x.double()), step(theirs, theirs, x)
    assert_as_near(step(ours, ours, x), torchs, exact)
    assert_as_near(step(fused, fused, x), torchs, exact)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n not in ("U-Net", "ConvNeXt-T") else n for n in ALL]
)
def test_network_compiled(name: str) -> None:
    """One graph, which computes what the network does eagerly."""
    make, shape = ALL[name]
    torch.manual_seed(0)
    eager = make()
    fastops.convert(eager, fuse=True)
    compiled, x = copy.deepcopy(eager), torch.randn(shape)
    torch._dynamo.reset()
    found = step(compiled, torch.compile(compiled, backend="aot_eager", fullgraph=True), x)
    for what, value in step(eager, eager, x).items():
        torch.testing.assert_close(found[what], value, msg=what)


@every_network
def test_saved_and_loaded_into_torchs(name: str) -> None:
    make, shape = ALL[name]
    torch.manual_seed(0)
    ours = make().eval()
    fastops.convert(ours, fuse=True)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs = make().eval()
    theirs.load_state_dict(torch.load(file))
    x = torch.randn(shape)
    with torch.no_grad():
        a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
