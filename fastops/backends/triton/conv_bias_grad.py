"""db[k] = Σ dy over the batch and all positions, in Triton. dy may be empty: then db is 0."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.channelwise import Slab, element, my_channels, total
from fastops.backends.triton.runtime import Run


@triton.jit
def sums_kernel(
    dy, partials, ROWS, C, S, CHUNK, SPLITS,
    LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    channel, split = my_channels(C, BC, INDEX)
    exists = channel < C
    start = split * CHUNK
    end = tl.minimum(start + CHUNK, ROWS)
    sum = tl.zeros((BR, BC), ACC)
    for first in range(0, CHUNK, BR):
        row = start + first + tl.arange(0, BR)[:, None]
        at = element(row, channel, C, S, LAST)
        sum += tl.load(dy + at, mask=exists & (row < end), other=0).to(ACC)
    tl.store(partials + split * C + channel, tl.sum(sum.to(tl.float64), 0)[None, :], mask=exists)


@triton.jit
def finish_sums_kernel(
    partials, db, ROWS, C, SPLITS, INDEX: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    channel, _ = my_channels(C, BC, INDEX)
    exists = channel < C
    sum = total(partials, channel, exists, SPLITS, C, BS, BC)
    tl.store(db + channel, sum.to(db.dtype.element_ty), mask=exists)


def conv_bias_grad(p: _C.ConvParams) -> Run:
    slab = Slab(p.dtype, p.channels_last, p.n, p.k, p.out[0] * p.out[1] * p.out[2])
    add, finish = slab.reduce(sums_kernel), slab.combine(finish_sums_kernel)

    def run(dy: Tensor, db: Tensor) -> None:
        partials = slab.partials(dy, 1)
        add(dy, partials)
        finish(partials, db)

    return run
