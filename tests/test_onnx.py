"""Exports: to ONNX, checked with onnxruntime, and to programs of torch's own ops."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastops
from fastops.onnx import decompositions, export
from tests.cases import Case, all_cases
from tests.networks import NETWORKS
from tests.test_library import converted
from tests.test_properties import first

# Forward ops as cases have them, which torch has too.
CASES = [
    case
    for case in all_cases()
    if not case.large
    and torch.float32 in case.dtypes
    and case.kwargs.get("mode") != "lanczos"
    and all(0 not in shape for shape in case.shapes)
]


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_decompositions(case: Case) -> None:
    """A program of torch's ops, which computes the same."""
    arguments = case.arguments(torch.float32)
    tensors = [i for i, a in enumerate(arguments) if isinstance(a, Tensor)]

    class Call(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            full = list(arguments)
            for i, t in zip(tensors, inputs, strict=True):
                full[i] = t.clone()  # batch norm may change it
            return first(case.call(fastops.functional, *full))

    inputs = tuple(arguments[i] for i in tensors)
    program = torch.export.export(Call(), inputs).run_decompositions(decompositions())
    assert not any("fastops" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(
        program.module()(*inputs), Call()(*inputs), rtol=1e-4, atol=1e-5, equal_nan=True
    )


def run_onnx(
    model: nn.Module, x: Tensor, folder: Path, others: tuple[Tensor, ...] = (), **options: Any
) -> set[str]:
    """Exports, compares onnxruntime's results with the model's; the types of the program's ops."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = str(folder / "model.onnx")
    program = export(model, (x,), path, verbose=False, **options)
    session = runtime.InferenceSession(path)
    for input in (x, *others):
        (y,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), model(input), rtol=1e-4, atol=1e-5)
    return {node.op_type for node in program.model.graph}


# (layers, the op that stands for them)
LAYERS = [
    (nn.Conv2d(4, 6, 3, 2, 1, groups=2), "Conv"),
    (nn.Conv2d(4, 6, (2, 4), padding="same"), "Conv"),
    (fastops.Conv2d(4, 6, 3, activation="relu"), "Relu"),
    (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), "ConvTranspose"),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), "MaxPool"),
    (nn.AdaptiveMaxPool2d(1), "ReduceMax"),
    (nn.AdaptiveMaxPool2d((3, 5)), "MaxPool"),
    (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "AveragePool"),
    (nn.AdaptiveAvgPool2d(2), "AveragePool"),
    (nn.AdaptiveAvgPool2d(1), "ReduceMean"),
    (nn.BatchNorm2d(4), "BatchNormalization"),
    (fastops.BatchNorm2d(4, activation="relu"), "BatchNormalization"),
    (nn.Upsample(scale_factor=2), "Resize"),
    (nn.Upsample(size=(5, 17), mode="bilinear", align_corners=True), "Resize"),
    (nn.Upsample(scale_factor=1.5, mode="bicubic"), "Resize"),
]


@pytest.mark.parametrize(("layer", "op"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_layers(layer: nn.Module, op: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(copy.deepcopy(layer))
    model(torch.randn(5, 4, 12, 10))  # some statistics
    fastops.convert(model.eval())
    assert op in run_onnx(model, torch.randn(2, 4, 12, 10), tmp_path, optimize=False)


@pytest.mark.parametrize("name", ["SegNet", "U-Net"])
def test_networks(name: str, tmp_path: Path) -> None:
    """With any size of batch and image."""
    torch.manual_seed(0)
    make, _ = NETWORKS[name]
    model = converted(make()).eval()
    dim = torch.export.Dim
    rows, columns = 16 * dim("rows", min=2, max=8), 16 * dim("columns", min=2, max=8)
    sizes = ({0: dim("batch", min=1, max=8), 2: rows, 3: columns},)
    x, other = torch.randn(2, 3, 48, 32), torch.randn(3, 3, 64, 48)
    ops = run_onnx(model, x, tmp_path, (other,), dynamic_shapes=sizes)
    assert ops >= (
        {"Conv", "MaxPool", "MaxUnpool", "Resize"} if name == "SegNet" else {"Conv", "ConvTranspose"}
    )
