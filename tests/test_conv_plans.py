"""The plans of convolutions on a GPU: kernels, tiles and splits that are chosen, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastops
from bench.rows import CONVS, Conv
from fastops import _C
from fastops.explain import GPUS, raw_ops
from fastops.ops import layout
from tests import conv_plans

TABLE = Path(__file__).resolve().parent.parent / "docs" / "conv_plans.md"
K = _C.ConvKernel
every_row = pytest.mark.parametrize("row", CONVS, ids=str)
every_layout = pytest.mark.parametrize("memory_format", conv_plans.LAYOUTS.values(), ids=conv_plans.LAYOUTS)


def test_table_is_up_to_date() -> None:
    text = "\n".join(conv_plans.table()) + "\n"
    assert TABLE.read_text() == text, "run: python -m tests.conv_plans > docs/conv_plans.md"


def wanted(row: Conv, name: str, memory_format: torch.memory_format) -> set[Any]:
    """The families that a pass of a well-known convolution must not miss on an H200."""
    if row.groups == row.c:
        return {K.toeplitz} if row.kernel > 8 else {K.depthwise}
    if row.c <= 4:  # an image needs no gradient: whichever kernels serve that
        return {K.direct, K.gemm} if name == "input_grad" else {K.stem}
    if row.c // row.groups < 8 or row.k // row.groups < 8:
        return {K.direct, K.gemm}
    if row.dtype is torch.bfloat16 and row.groups == 1:
        return {K.hopper} if memory_format is layout.CHANNELS_LAST else {K.hopper, K.gemm}
    return {K.gemm}


@every_layout
@every_row
def test_families(row: Conv, memory_format: torch.memory_format) -> None:
    for name, plan in conv_plans.plans(row, memory_format).items():
        assert plan.kernel in wanted(row, name, memory_format), name


@every_layout
@every_row
def test_numbers(row: Conv, memory_format: torch.memory_format) -> None:
    """What a plan says is consistent, and no better than the device."""
    params, device = conv_plans.params(row, memory_format), GPUS["H200"]
    out = params.out[1] * params.out[2]
    flops = 2 * row.n * out * row.k * (row.c // row.groups) * row.kernel**2
    elements = row.n * (row.c * row.size**2 + row.k * out) + row.k * (row.c // row.groups) * row.kernel**2
    for name, plan in conv_plans.plans(row, memory_format).items():
        assert plan.flops == flops and plan.bytes == elements * row.dtype.itemsize
        assert plan.blocks >= 1 and plan.waves == pytest.approx(plan.blocks / device.multiprocessors)
        assert 0 < plan.roof <= 1
        assert plan.seconds >= plan.bytes / device.bandwidth
        assert (plan.splits == 1) or name == "weight_grad"


@pytest.mark.parametrize("gpu", GPUS)
@every_row
def test_every_gpu(row: Conv, gpu: str) -> None:
    """A plan on each GPU; what is not served there is not planned."""
    params = conv_plans.params(row, layout.CHANNELS_LAST)
    for name, plan in conv_plans.plans(row, layout.CHANNELS_LAST, GPUS[gpu]).items():
        assert _C.conv_kernel_serves(plan.kernel, params, getattr(_C.ConvPass, name), GPUS[gpu])


def test_no_tensor_cores_before_sm_80() -> None:
    turing = _C.Device(capability=75, multiprocessors=68)
    for row in CONVS:
        for plan in conv_plans.plans(row, layout.CHANNELS_LAST, turing).values():
            assert plan.kernel in (K.direct, K.depthwise)


def test_weight_gradients_with_few_tiles_are_split() -> None:
    """64→64 3×3 has 9 tiles of 64 × 64 in all: a GPU is filled by cutting the sum."""
    row = Conv("", 256, 64, 64, 3, 56)
    plan = conv_plans.plans(row, layout.CHANNELS_LAST)["weight_grad"]
    assert plan.splits > 20 and plan.blocks >= GPUS["H200"].multiprocessors
    wide = conv_plans.plans(Conv("", 2, 1280, 1280, 3, 16), layout.CHANNELS_LAST)["weight_grad"]
    assert wide.splits <= 2


def test_small_tiles_where_large_ones_leave_a_gpu_idle() -> None:
    rows = [Conv("", n, 64, 64, 3, 56) for n in (1, 256)]
    tiles = [conv_plans.plans(row, layout.CHANNELS_LAST, GPUS["A100"])["forward"].tile for row in rows]
    assert tiles[0].m < tiles[1].m


def test_contiguous_tensors_may_go_through_copies() -> None:
    """Where a 1 × 1 convolution does little with each element, they cost more than they save."""
    large, small = Conv("", 64, 256, 256, 3, 56), Conv("", 256, 64, 256, 1, 56)
    for row, copied in ((large, True), (small, False)):
        plan = conv_plans.plans(row, layout.CONTIGUOUS)["forward"]
        assert plan.copies is copied and (plan.kernel == K.hopper) is copied
        assert not conv_plans.plans(row, layout.CHANNELS_LAST)["forward"].copies
    x = torch.zeros(64, 256, 56, 56, dtype=torch.bfloat16, device="meta")
    text = fastops.explain(fastops.Conv2d(256, 256, 3, padding=1).bfloat16(), x, gpu="H200")
    assert "through copies in channels_last" in text


def test_a_family_that_does_not_serve_raises() -> None:
    params = conv_plans.params(Conv("", 1, 8, 8, 3, 8, groups=8), layout.CONTIGUOUS)
    fields = {name: getattr(params, name) for name in params.fields}
    asked = _C.ConvParams(**{**fields, "kernel_family": K.gemm})
    with pytest.raises(ValueError, match="do not serve"):
        _C.conv_plan(asked, _C.ConvPass.forward, GPUS["H200"])


def test_a_tile_that_is_asked_for() -> None:
    params = conv_plans.params(Conv("", 8, 64, 256, 3, 56), layout.CHANNELS_LAST)
    for tile_n in (64, 128, 256):
        params.tile_n = tile_n
        assert _C.conv_plan(params, _C.ConvPass.forward, GPUS["H200"]).tile.n == tile_n
    params.tile_n, params.splits = 0, 5
    assert _C.conv_plan(params, _C.ConvPass.weight_grad, GPUS["H200"]).splits == 5
    params.tile_n, params.kernel_family = 48, K.hopper
    with pytest.raises(ValueError, match="no such tile"):
        _C.conv_plan(params, _C.ConvPass.forward, GPUS["H200"])


# ---- fastops.explain ----------------------------------------------------------------------------


def test_explain_a_layer() -> None:
    layer = fastops.Conv2d(64, 64, 3, padding=1).bfloat16()
    x = torch.zeros(2, 64, 56, 56, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    text = fastops.explain(layer, x, gpu="H200")
    head, *lines = text.splitlines()
    assert head == "Conv2d of (2, 64, 56, 56), torch.bfloat16, channels_last, on H200"
    assert [line.split(":")[0].strip() for line in lines] == [
        *("conv", "forward", "conv_backward", "input_grad", "weight_grad")
    ]
    assert all("of the roof" in line for line in lines if line.startswith("    "))
    assert "conv: cpu (C++ kernels" in fastops.explain(layer, x)
    assert layer.weight.grad is None and not layer.weight.is_meta


def test_explain_follows_torchs_precision() -> None:
    layer, x = fastops.Conv2d(64, 64, 3, padding=1), torch.zeros(64, 64, 56, 56)
    before = torch._C._get_cudnn_allow_tf32()  # where torch.testing has frozen the flags, too
    try:
        said = {}
        for allowed in (False, True):
            torch._C._set_cudnn_allow_tf32(allowed)
            said[allowed] = fastops.explain(layer, x, gpu="A100")
        assert said[False] != said[True]
    finally:
        torch._C._set_cudnn_allow_tf32(before)


def test_explain_a_model() -> None:
    model = nn.Sequential(
        fastops.Conv2d(3, 8, 3), fastops.BatchNorm2d(8, activation="relu"), fastops.MaxPool2d(2)
    )
    state = {name: t.clone() for name, t in model.state_dict().items()}
    ops = [op for op, _ in raw_ops(model, torch.zeros(2, 3, 12, 12))]
    backward = ["scatter_add", "batch_norm_backward", "conv_backward"]
    assert ops == ["conv", "batch_norm", "max_pool", *backward]
    assert [op for op, _ in raw_ops(model, torch.zeros(2, 3, 12, 12), gradients=False)] == ops[:3]
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())


def test_explain_says_what_is_missing() -> None:
    x = torch.zeros(1, 1, 2, 2)
    assert "convert" in fastops.explain(nn.Conv2d(1, 1, 1), x)
    with pytest.raises(ValueError, match="unknown GPU 'H9000'"):
        fastops.explain(fastops.Conv2d(1, 1, 1), x, gpu="H9000")
    with pytest.raises(ValueError, match="needs the tensor"):
        fastops.explain(fastops.Conv2d(1, 1, 1))
    assert fastops.explain("conv").startswith("conv on cpu: cpu (")


def test_hopper_where_the_device_has_it() -> None:
    """Kernels for sm_90a are chosen where the device says so, and then where tensor cores matter."""
    row = next(r for r in CONVS if r.c >= 64 and r.k >= 64 and r.groups == 1 and r.kernel == 3 and r.n >= 16)
    params = conv_plans.params(row, torch.channels_last)
    params.dtype = _C.DType.bf16
    device = _C.Device()
    assert not device.hopper_kernels
    assert _C.conv_plan(params, _C.ConvPass.forward, device).kernel == K.gemm
    device.hopper_kernels = True
    for name in conv_plans.PASSES:
        assert _C.conv_plan(params, getattr(_C.ConvPass, name), device).kernel == K.hopper
    device.capability = 80
    assert _C.conv_plan(params, _C.ConvPass.forward, device).kernel == K.gemm
