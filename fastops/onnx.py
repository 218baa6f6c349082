"""Exporting to ONNX, and to programs of torch's own ops.

``torch.ops.fastops.…`` in an exported program are kernels of this package. ``decompositions()`` says what
they are in torch's ops: a program that has gone through them runs without the package, and torch's ONNX
exporter translates it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastops.ops.library import OPS

aten = torch.ops.aten


def _conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    shape: Any,
    _: Any,
    relu: bool,
) -> Tensor:
    # What the end is padded by follows from the size of the result.
    after = [
        (shape[2 + a] - 1) * stride[a] + dilation[a] * (w.shape[2 + a] - 1) + 1 - x.shape[2 + a] - padding[a]
        for a in (0, 1)
    ]
    # A stride may leave a rest.
    extra = [after[a] - padding[a] if stride[a] == 1 else 0 for a in (0, 1)]
    if extra[0] != 0 or extra[1] != 0:
        x = aten.constant_pad_nd(x, [0, extra[1], 0, extra[0]], 0.0)
    y = aten.convolution(x, w, b, stride, padding, dilation, False, [0, 0], groups)
    return aten.relu(y) if relu else y


def _conv2d_input_grad(
    dy: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    shape: Any,
    _: Any,
) -> Tensor:
    rest = [
        shape[2 + a]
        - ((dy.shape[2 + a] - 1) * stride[a] - 2 * padding[a] + dilation[a] * (w.shape[2 + a] - 1) + 1)
        for a in (0, 1)
    ]
    return aten.convolution(dy, w, b, stride, padding, dilation, True, rest, groups)  # type: ignore[no-any-return]


def _max_pool2d(
    x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, _: str
) -> tuple[Tensor, Tensor]:
    return aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)  # type: ignore[no-any-return]


def _adaptive_max_pool2d(x: Tensor, size: Any, _: str) -> tuple[Tensor, Tensor]:
    if tuple(size) == (1, 1):
        where = aten.argmax(x.flatten(2), 2, True).unsqueeze(-1)
        return aten.amax(x, [2, 3], True), where
    if x.shape[2] % size[0] == 0 and x.shape[3] % size[1] == 0:  # equal windows, which ONNX has
        kernel = [x.shape[2] // size[0], x.shape[3] // size[1]]
        return aten.max_pool2d_with_indices(x, kernel, kernel)  # type: ignore[no-any-return]
    return aten.adaptive_max_pool2d(x, size)  # type: ignore[no-any-return]


def _adaptive_avg_pool2d(x: Tensor, size: Any) -> Tensor:
    if tuple(size) == (1, 1):
        return aten.mean(x, [2, 3], True)  # type: ignore[no-any-return]
    return aten._adaptive_avg_pool2d(x, size)  # type: ignore[no-any-return]


def _max_unpool2d(x: Tensor, indices: Tensor, size: Any, _: Any) -> Tensor:
    return aten.max_unpool2d(x, indices, size)  # type: ignore[no-any-return]


def _interpolate(
    x: Tensor, mode: str, size: Any, scale: Any, recompute: bool, align_corners: bool, antialias: bool
) -> Tensor:
    if mode not in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        raise NotImplementedError(f"fastops: torch has no op for interpolation in the mode {mode!r}")
    if size is None and recompute:
        size, scale = [torch.sym_int(x.shape[2 + a] * scale[a]) for a in (0, 1)], None
    if mode.startswith("nearest"):
        nearest = aten.upsample_nearest2d if mode == "nearest" else aten._upsample_nearest_exact2d
        return nearest.vec(x, size, scale)  # type: ignore[no-any-return]
    name = f"_upsample_{mode}2d_aa" if antialias else f"upsample_{mode}2d"
    return getattr(aten, name).vec(x, size, align_corners, scale)  # type: ignore[no-any-return]


def _batch_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, residual: Tensor | None,
    mean: Tensor | None, var: Tensor | None, training: bool, momentum: float, eps: float, relu: bool, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    if not training:
        y, *rest = aten._native_batch_norm_legit_no_training(x, w, b, mean, var, momentum, eps)
        updated = [x.new_empty(0), x.new_empty(0)]
    elif mean is None:
        y, *rest = aten._native_batch_norm_legit.no_stats(x, w, b, True, momentum, eps)
        updated = [x.new_empty(0), x.new_empty(0)]
    else:
        y, *rest = aten._native_batch_norm_legit_functional(x, w, b, mean, var, True, momentum, eps)
        rest, updated = rest[:2], rest[2:]
    y = y if residual is None else y + residual
    return aten.relu(y) if relu else y, *rest, *updated


_DECOMPOSITIONS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "conv2d_input_grad": _conv2d_input_grad,
    "avg_pool2d": aten.avg_pool2d.default,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "max_pool2d": _max_pool2d,
    "adaptive_max_pool2d": _adaptive_max_pool2d,
    "max_unpool2d": _max_unpool2d,
    "interpolate": _interpolate,
    "batch_norm": _batch_norm,
}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What the package's forward ops are in torch's: for ``ExportedProgram.run_decompositions``."""
    return {OPS[name].overload: function for name, function in _DECOMPOSITIONS.items()}


def export(model: nn.Module, args: tuple[Any, ...], f: str | None = None, **options: Any) -> Any:
    """``torch.onnx.export`` (with torch.export) for models that have fastops' layers, and for max unpooling,
    which it does not translate for any.

    model: in evaluation mode, as a rule. args: example inputs. f: a file to write, or None. options: those of
    ``torch.onnx.export``; ``dynamic_shapes`` is torch.export's. Returns a ``torch.onnx.ONNXProgram``. Conv2d
    and ConvTranspose2d become Conv and ConvTranspose, pooling MaxPool, AveragePool, ReduceMean and ReduceMax,
    BatchNorm2d BatchNormalization, interpolation Resize, unpooling MaxUnpool. Needs the packages onnx and
    onnxscript (ImportError).
    """
    program = torch.export.export(
        model, args, dynamic_shapes=options.pop("dynamic_shapes", None), strict=False
    )
    translations = {
        aten.max_unpool2d.default: _translated_unpool(),
        **options.pop("custom_translation_table", {}),
    }
    return torch.onnx.export(
        program.run_decompositions(decompositions()),
        (),
        f,
        dynamo=True,
        custom_translation_table=translations,
        **options,
    )


def _translated_unpool() -> Callable[..., Any]:
    from onnxscript import opset18 as op

    def max_unpool2d(x: Any, indices: Any, size: Any) -> Any:
        """ONNX counts positions through the whole result, torch inside a plane."""
        one = op.Constant(value_ints=[1])
        sizes = [op.Reshape(n, one) if not isinstance(n, int) else op.Constant(value_ints=[n]) for n in size]
        batch = op.Shape(x, start=0, end=2)
        planes, plane = op.ReduceProd(batch, keepdims=0), op.Mul(*sizes)
        first = op.Mul(op.Range(op.Constant(value_int=0), planes, op.Constant(value_int=1)), plane)
        first = op.Reshape(first, op.Concat(batch, one, one, axis=0))
        shape = op.Concat(batch, *sizes, axis=0)
        return op.MaxUnpool(x, op.Add(indices, first), shape, kernel_shape=[1, 1], strides=[1, 1])

    return max_unpool2d
