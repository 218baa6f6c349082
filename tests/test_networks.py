"""Whole networks: converted, compared with torch in values and in every gradient, eagerly and compiled."""

from __future__ import annotations

import copy
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastops
from tests.networks import NETWORKS

Make = Callable[[], nn.Module]


# Ops that torchvision's Python half expects, and that no network here calls.
_missing = torch.library.Library("torchvision", "FRAGMENT")


def torchvision_networks() -> dict[str, tuple[Make, tuple[int, ...]]]:
    """torchvision's own, where it can be imported: beside a torch without CUDA its wheel's library does not
    load, and ops are missing."""
    for _ in range(20):
        try:
            from torchvision import models

            break
        except ImportError:
            return {}
        except RuntimeError as error:
            op = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if op is None:
                return {}
            _missing.define(f"{op[1]}(Tensor x) -> Tensor")
            for name in [n for n in sys.modules if n.startswith("torchvision")]:
                del sys.modules[name]
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
    """As near to fp64 as torch is: within three times its distance or a few roundings in every tensor, and
    half as much again on average."""
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
            assert ours <= 3 * theirs + roundings, what
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n not in ("U-Net", "ConvNeXt-T") else n for n in ALL]
)
def test_network_compiled(name: str, dtype: torch.dtype) -> None:
    """In one graph, forward and backward."""
    make, shape = ALL[name]
    torch.manual_seed(0)
    theirs, x = make().to(dtype), torch.randn(shape).to(dtype)
    compiled, reference = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    fastops.convert(compiled, fuse=True)
    torch._dynamo.reset()
    found = step(compiled, torch.compile(compiled, backend="aot_eager", fullgraph=True), x)
    assert_as_near(found, step(theirs, theirs, x), step(reference, reference, x.double()))


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


# ---- what training makes of networks ------------------------------------------------------------


@every_network
def test_channels_last_goes_through(name: str) -> None:
    """Every layer's result, and every gradient of a layer's input, has the strides that it has in torch."""
    make, shape = ALL[name]
    torch.manual_seed(0)
    theirs = make().to(memory_format=torch.channels_last)
    ours = copy.deepcopy(theirs)
    fastops.convert(ours)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    layouts: list[list[tuple[str, Any]]] = [[], []]
    for model, seen in zip((ours, theirs), layouts, strict=True):
        for where, layer in model.named_modules():
            if not list(layer.children()):

                def note(m: nn.Module, i: Any, result: Any, where: str = where, seen: Any = seen) -> None:
                    for y in result if isinstance(result, tuple) else (result,):
                        # (Strides along sizes of 1 say nothing.)
                        strides = zip(y.stride(), y.shape, strict=True)
                        seen.append((where, [s for s, size in strides if size > 1]))

                layer.register_forward_hook(note)
        model(x)
    assert layouts[0] == layouts[1]


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_checkpoint(reentrant: bool) -> None:
    """Activations that are computed again give the same gradients; batch norm then sees its batch twice."""
    torch.manual_seed(0)
    theirs = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=4)
    )
    ours = copy.deepcopy(theirs)
    fastops.convert(ours)
    found = []
    for model in (ours, theirs):
        x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_autocast_and_gradient_scaling(dtype: torch.dtype) -> None:
    """Each layer's result has the dtype that torch's has, and scaled steps train alike."""
    make, shape = ALL["SegNet"]
    torch.manual_seed(0)
    theirs = make()
    ours = copy.deepcopy(theirs)
    fastops.convert(ours)
    x = torch.randn(shape)
    dtypes: list[list[Any]] = [[], []]
    for model, seen in zip((ours, theirs), dtypes, strict=True):
        for where, layer in model.named_modules():
            if not list(layer.children()):
                layer.register_forward_hook(
                    lambda m, i, y, where=where, seen=seen: seen.append(
                        (where, (y[0] if isinstance(y, tuple) else y).dtype)
                    )
                )
        scaler, optimizer = torch.amp.GradScaler("cpu", 256.0), torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = (model(x).float() - x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert dtypes[0] == dtypes[1]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)
