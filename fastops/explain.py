"""What would run: which kernels a layer's forward and backward call, and how those are planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastops import _C
from fastops.backends import choose, recorded
from fastops.ops import layout
from fastops.ops.conv import tf32_switch

# GPUs by name, as plans see them. Clocks are the boosted ones of data sheets, bandwidths nine tenths of the
# data sheets' (what a copy reaches).
GPUS: dict[str, _C.Device] = {
    "A100": _C.Device(
        capability=80,
        multiprocessors=108,
        shared_bytes=166912,
        l2_bytes=40 << 20,
        clock_hz=1.41e9,
        bandwidth=1.83e12,
    ),
    "H100": _C.Device(
        capability=90,
        multiprocessors=132,
        shared_bytes=232448,
        l2_bytes=50 << 20,
        clock_hz=1.83e9,
        bandwidth=3.0e12,
        hopper_kernels=True,
    ),
    "H200": _C.Device(
        capability=90,
        multiprocessors=132,
        shared_bytes=232448,
        l2_bytes=50 << 20,
        clock_hz=1.785e9,
        bandwidth=4.3e12,
        hopper_kernels=True,
    ),
    "RTX 4090": _C.Device(
        capability=89,
        multiprocessors=128,
        shared_bytes=101376,
        l2_bytes=72 << 20,
        clock_hz=2.52e9,
        bandwidth=0.91e12,
    ),
}

# The passes of a convolution that a raw op computes.
PASSES = {
    "conv": (_C.ConvPass.forward,),
    "conv_input_grad": (_C.ConvPass.input_grad,),
    "conv_weight_grad": (_C.ConvPass.weight_grad,),
    "conv_backward": (_C.ConvPass.input_grad, _C.ConvPass.weight_grad),
}


def raw_ops(module: nn.Module, x: Tensor, *, gradients: bool = True) -> list[tuple[str, Any]]:
    """The raw ops that module(x) and, unless told otherwise, its backward pass launch, each with its params.

    Nothing is computed: the module runs on tensors without data, as it is (training or evaluation).
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    meta = {
        name: t.detach().to("meta").requires_grad_(gradients and t.requires_grad) for name, t in state.items()
    }
    like_x = torch.empty_like(x, device="meta").requires_grad_(gradients and x.is_floating_point())
    with recorded() as recording, torch.set_grad_enabled(gradients):
        y = torch.func.functional_call(module, meta, (like_x,))
        if isinstance(y, Tensor) and y.requires_grad:
            y.backward(torch.empty_like(y))
    return [(op, params) for op, params, _ in recording.launches]


def plan_line(plan: _C.ConvPlan) -> str:
    """One line: the kernel, its tile, and what the model says of it."""
    tile = plan.tile
    parts = [f"{plan.kernel.name} {tile.m}×{tile.n}×{tile.k}"]
    parts += [f"{tile.stages} stages"] if tile.stages > 1 else []
    parts += [f"{plan.splits} parts"] if plan.splits > 1 else []
    parts += ["through copies in channels_last"] if plan.copies else []
    parts += [f"{plan.blocks} blocks ({plan.waves:.2f} waves)"]
    parts += [f"{plan.seconds * 1e6:.1f} µs by the model", f"{100 * plan.roof:.0f} % of the roof"]
    return ", ".join(parts)


def conv_plans(op: str, params: _C.ConvParams, device: _C.Device) -> Iterator[tuple[str, _C.ConvPlan]]:
    """The plan of each pass that a raw op computes, with the pass's name; none for other ops."""
    for pass_ in PASSES.get(op, ()):
        yield pass_.name, _C.conv_plan(params, pass_, device)


def _with_precision(params: _C.ConvParams) -> _C.ConvParams:
    """The params as a GPU's would be: with torch's switch for TF32."""
    fields = {name: getattr(params, name) for name in params.fields}
    return _C.ConvParams(**{**fields, "tf32": params.dtype == _C.DType.f32 and tf32_switch()})


def explain(
    what: str | nn.Module, x: Tensor | None = None, *, device: Any = None, gpu: str | None = None
) -> str:
    """Which kernels serve a call, and why; for convolutions on a GPU also how they are planned.

    what: a layer or model that takes one tensor, x, on which it runs without computing anything, forward
    and backward; or the name of a raw op (such as "conv"). device: where; by default x's, or "cpu". gpu: the
    name of a GPU (one of ``fastops.explain``'s GPUS: "A100", "H100", "H200", "RTX 4090") to plan
    convolutions for, whether there is one here or not; by default the current one, if x is on it.
    Times and fractions of the roof are what a model says (csrc/conv_cost.h), not measurements.
    Returns lines of text. Raises ValueError for an unknown GPU or a missing x, NotImplementedError where no
    kernel serves.
    """
    where = torch.device(device if device is not None else "cpu" if x is None else x.device)
    if isinstance(what, str):
        choice = choose(what, where.type)
        return f"{what} on {where}: {choice.backend} ({choice.reason})"
    if x is None:
        raise ValueError(
            "explain: a module needs the tensor that it would be called with, explain(module, x)"
        )
    if gpu is not None and gpu not in GPUS:
        raise ValueError(f"explain: unknown GPU {gpu!r}; known: {', '.join(map(repr, GPUS))}")
    kind = "channels_last" if layout.format_of(x) is layout.CHANNELS_LAST else "contiguous"
    lines = [f"{type(what).__name__} of {tuple(x.shape)}, {x.dtype}, {kind}, on {gpu or where}"]
    for op, params in raw_ops(what, x):
        choice = None if gpu else choose(op, where.type)
        lines.append(f"  {op}" + (f": {choice.backend} ({choice.reason})" if choice else ""))
        if gpu or (choice and choice.backend == "cuda"):
            on = GPUS[gpu] if gpu else _C.cuda.device()
            for name, plan in conv_plans(op, _with_precision(params), on):
                lines.append(f"    {name}: {plan_line(plan)}")
        elif choice and choice.backend == "triton":
            from fastops.backends.triton import conv_plan

            for pass_ in PASSES.get(op, ()):
                lines.append(f"    {pass_.name}: {conv_plan.plan(_with_precision(params), pass_)}")
    if len(lines) == 1:
        lines.append("  no kernels of fastops: convert the layers first, or construct fastops' own")
    return "\n".join(lines)
