"""Convolutions by cudnn-frontend's graphs, under the name that torch.nn.functional gives them: a contender of
the benchmark where the package ``nvidia-cudnn-frontend`` is installed. cuDNN chooses by its heuristics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import cudnn
import torch
from torch import Tensor

TYPES = {
    torch.float16: cudnn.data_type.HALF,
    torch.bfloat16: cudnn.data_type.BFLOAT16,
    torch.float32: cudnn.data_type.FLOAT,
}
Layout = tuple[tuple[int, ...], tuple[int, ...]]  # sizes and strides


@lru_cache(maxsize=1)
def _handle() -> Any:
    return cudnn.create_handle()


def define(
    kind: str, dtype: torch.dtype, sides: dict[str, Layout], result: Layout, options: dict[str, list[int]]
) -> tuple[Any, list[Any], Any]:
    """The graph of conv_fprop, conv_dgrad or conv_wgrad on operands with those names; its ends."""
    graph = cudnn.pygraph(
        io_data_type=TYPES[dtype],
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=_handle() if torch.cuda.is_available() else None,  # without: to look at
    )
    inputs = {name: graph.tensor(name=name, dim=[*d], stride=[*s]) for name, (d, s) in sides.items()}
    out = getattr(graph, kind)(**inputs, **options)
    out.set_output(True).set_dim([*result[0]]).set_stride([*result[1]])
    return graph, [*inputs.values()], out


@lru_cache(maxsize=64)
def _built(
    kind: str, dtype: torch.dtype, sides: tuple[tuple[str, Layout], ...], result: Layout, options: Any
) -> Callable[[list[Tensor], Tensor], None]:
    graph, inputs, out = define(kind, dtype, dict(sides), result, {k: [*v] for k, v in options})
    graph.build([cudnn.heur_mode.A])
    size = graph.get_workspace_size()

    def run(tensors: list[Tensor], y: Tensor) -> None:
        workspace = torch.empty(size, device=y.device, dtype=torch.uint8)
        cudnn.set_stream(_handle(), torch.cuda.current_stream(y.device).cuda_stream)
        graph.execute({**dict(zip(inputs, tensors, strict=True)), out: y}, workspace, handle=_handle())

    return run


def _run(kind: str, operands: dict[str, Tensor], y: Tensor, options: dict[str, tuple[int, int]]) -> Tensor:
    sides = tuple((name, (tuple(t.shape), t.stride())) for name, t in operands.items())
    run = _built(kind, y.dtype, sides, (tuple(y.shape), y.stride()), tuple(options.items()))
    run([*operands.values()], y)
    return y


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, options: dict[str, tuple[int, int]]) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.options = options
        meta = torch.nn.functional.conv2d(x.to("meta"), w.to("meta"), **options)
        y = torch.empty_like(meta, device=x.device)
        return _run("conv_fprop", {"image": x, "weight": w}, y, options)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _run("conv_dgrad", {"loss": dy, "filter": w}, torch.empty_like(x), ctx.options)
        if ctx.needs_input_grad[1]:
            dw = _run("conv_wgrad", {"image": x, "loss": dy}, torch.empty_like(w), ctx.options)
        return dx, dw, None


def conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    if bias is not None or groups != 1:
        raise NotImplementedError("of cudnn-frontend only convolutions without bias and groups are measured")
    both: dict[str, Sequence[int]] = dict(
        stride=(stride,) * 2, padding=(padding,) * 2, dilation=(dilation,) * 2
    )
    return _Conv2d.apply(x, w, both)
