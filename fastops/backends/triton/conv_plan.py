"""Which Triton kernel and tile serve a pass of a convolution.

A pure function of the params and of whether the GPU has TMA; or what fastops.tune has measured.
"""

from __future__ import annotations

from typing import NamedTuple

import triton.language as tl

from fastops import _C
from fastops.backends.triton import tuned
from fastops.backends.triton.conv_shared import index_of
from fastops.backends.triton.runtime import VERSION, has_tma, next_power_of_2

# Whether Triton multiplies matrices of fp64.
HAS_FP64_DOT = VERSION >= (3, 5)


class Block(NamedTuple):
    """A tile of the product: rows × columns in steps of `depth`. Forward and in the input gradient rows are
    pixels and columns channels of the result; in the weight gradient rows are output channels, and columns
    input channels of taps."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


class Plan(NamedTuple):
    """kernel: "depthwise", "gather" (any shape) or "tma" (Hopper, dense, channels_last, 16 bits)."""

    kernel: str
    block: Block

    def __str__(self) -> str:
        if self.kernel == "depthwise":
            return "depthwise kernel"
        rows, columns, depth, warps, stages = self.block
        return f"{self.kernel} kernel {rows}×{columns}×{depth}, {warps} warps, {stages} stages"


def precision(p: _C.ConvParams) -> str:
    """How products are made: on tensor cores in TF32, exactly, or without products of matrices."""
    if p.dtype == _C.DType.f64 and not HAS_FP64_DOT:
        return "sums"
    return "tf32" if p.dtype == _C.DType.f32 and p.tf32 else "ieee"


def depth_of(channels: int) -> int:
    """Channels of a step by TMA: as many as divide them; 0: none."""
    return next((depth for depth in (64, 32, 16) if channels % depth == 0), 0)


def is_halved(p: _C.ConvParams) -> bool:
    """A stride of 2, of an image that consists of pairs."""
    return p.stride[1:] == (2, 2) and p.in_[1] % 2 == 0 and p.in_[2] % 2 == 0


def tma_serves(p: _C.ConvParams, pass_: _C.ConvPass) -> bool:
    """Whether TMA can read the tensors: channels of whole 16 bytes, w in channels_last, a stride that a view
    has."""
    channels_last = p.channels_last and (p.weight_channels_last or p.kernel[1] * p.kernel[2] == 1)
    if not channels_last or p.dtype not in (_C.DType.bf16, _C.DType.f16) or p.groups != 1:
        return False
    if 0 in (p.n, p.c, p.k, *p.in_, *p.out) or max(p.n, *p.in_, *p.out) * 4 >= 2**31:
        return False
    if pass_ == _C.ConvPass.input_grad:
        # Every phase has a tap, or its results would not be written.
        covered = all(p.kernel[a] >= p.stride[a] and p.dilation[a] == 1 for a in (1, 2))
        return p.c % 8 == 0 and depth_of(p.k) > 0 and (covered or p.stride[1:] == (1, 1))
    return p.k % 8 == 0 and depth_of(p.c) > 0 and (p.stride[1:] == (1, 1) or is_halved(p))


def depthwise_serves(p: _C.ConvParams) -> bool:
    return p.groups == p.c and p.c > 1


def _sizes(p: _C.ConvParams, pass_: _C.ConvPass) -> tuple[int, int, int]:
    """(rows, columns, channels that are summed over) of the product."""
    ci, co = p.c // p.groups, p.k // p.groups
    if pass_ == _C.ConvPass.forward:
        return p.n * p.out[1] * p.out[2], co, ci
    if pass_ == _C.ConvPass.input_grad:
        return p.n * p.in_[1] * p.in_[2] // (p.stride[1] * p.stride[2]), ci, co
    return co, p.kernel[1] * p.kernel[2] * ci, 0


def gather_plan(p: _C.ConvParams, pass_: _C.ConvPass) -> Plan:
    """Large tiles where there is enough to do; on the ordinary cores small ones, which fit into registers."""
    rows, columns, _ = _sizes(p, pass_)
    if precision(p) == "sums":
        return Plan("gather", Block(16, 16, 16, 4, 1))
    if p.dtype == _C.DType.f64 or (p.dtype == _C.DType.f32 and not p.tf32):
        return Plan("gather", Block(32, 32, 16, 4, 2))
    # Addresses of single elements are in registers: half as many.
    single = pass_ == _C.ConvPass.weight_grad and (not p.channels_last or p.c // p.groups % 8 != 0)
    depth = 32 if p.dtype == _C.DType.f32 or single else 64
    if index_of(p) == tl.int64:  # and of 64 bits half as many again
        depth //= 2
    bm = 128 if rows >= 128 * 64 else 64 if rows >= 64 else 32
    bn = 128 if columns >= 128 and rows >= 128 * 128 else min(64, max(16, next_power_of_2(columns)))
    return Plan("gather", Block(bm, bn, depth, 8 if bm * bn >= 128 * 128 else 4, 3))


def tma_plan(p: _C.ConvParams, pass_: _C.ConvPass) -> Plan:
    rows, columns, channels = _sizes(p, pass_)
    if pass_ == _C.ConvPass.weight_grad:
        width = depth_of(p.c)
        wide = 128 if p.c % 128 == 0 else width
        return Plan("tma", Block(64 if p.k <= 64 else 128, wide, 64, 4, 4))
    if rows >= 256 * 132 and columns > 64:
        return Plan("tma", Block(256, 128, depth_of(channels), 8, 4))
    return Plan("tma", Block(128, 64 if columns <= 64 else 128, depth_of(channels), 4, 4))


def default_plan(p: _C.ConvParams, pass_: _C.ConvPass, tma: bool) -> Plan:
    if depthwise_serves(p):
        return Plan("depthwise", Block(0, 0, 0, 0, 0))
    return tma_plan(p, pass_) if tma and tma_serves(p, pass_) else gather_plan(p, pass_)


def candidates(p: _C.ConvParams, pass_: _C.ConvPass, tma: bool) -> list[Plan]:
    """What is worth measuring: the default first."""
    first = default_plan(p, pass_, tma)
    if first.kernel == "depthwise":
        return [first]
    found = [first, gather_plan(p, pass_)]
    if precision(p) != "ieee" or p.dtype in (_C.DType.bf16, _C.DType.f16):
        depth = gather_plan(p, pass_).block.depth
        for rows, columns, warps in ((64, 64, 4), (128, 64, 4), (128, 128, 8), (64, 128, 4)):
            found += [Plan("gather", Block(rows, columns, depth, warps, stages)) for stages in (2, 3)]
    if first.kernel == "tma" and pass_ != _C.ConvPass.weight_grad:
        depth = first.block.depth
        for rows, columns, warps in ((128, 64, 4), (128, 128, 4), (128, 128, 8), (256, 64, 4), (256, 128, 8)):
            found += [Plan("tma", Block(rows, columns, depth, warps, stages)) for stages in (3, 4)]
    if first.kernel == "tma" and pass_ == _C.ConvPass.weight_grad:
        wide = first.block.columns
        found += [Plan("tma", Block(rows, wide, 64, 4, stages)) for rows in (64, 128) for stages in (3, 4)]
    return list(dict.fromkeys(found))


def plan(p: _C.ConvParams, pass_: _C.ConvPass) -> Plan:
    """The plan for the current GPU: what was measured, if it was, else the default."""
    known = tuned.choice(pass_.name, p)
    if known is not None:
        return Plan(known[0], Block(*known[1:]))
    return default_plan(p, pass_, has_tma())
