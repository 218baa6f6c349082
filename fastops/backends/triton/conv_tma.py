"""Dense convolution in 16-bit types and channels_last on Hopper, in Triton: tiles by TMA, products by wgmma.

A tile of pixels is a box of the image, BI images × BH rows × BW columns × BC channels, and a tap is the box
at an offset: what lies outside of the image comes as zeros. The product is W · Xᵀ, so that the box stays
where TMA has put it, as wgmma's operand in shared memory; with pixels as rows it would go through registers,
which Triton 3.6 overwrites while products are pending. For the same compiler the loop has a constant number
of steps, or ptxas would have each product wait for the one before.

256 pixels × 128 channels in steps of 64 read 48 KiB for 4.2 M multiply-adds; four stages are 192 KiB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.conv_plan import Block, is_halved
from fastops.backends.triton.conv_shared import axes, finish_weight_grad, new_partials
from fastops.backends.triton.runtime import PROGRAMS, Launch, Run, ceil_div, memory_from, next_power_of_2

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4; runtime.has_tma() says so
    TensorDescriptor = None


@triton.jit
def conv_tma_kernel(
    source, w, result, bias, TILES_H, TILES_W, CHANNEL_TILES, CO, OFF_H, OFF_W, W_FROM, W_H, W_W,
    OFF_STEP_H: tl.constexpr, OFF_STEP_W: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr,
    CI: tl.constexpr, HALVES: tl.constexpr, ACROSS: tl.constexpr, RELU: tl.constexpr,
    T: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """HALVES: a stride of 2, the image seen as pairs of rows and of columns. ACROSS: w is (CI, CO), not (CO,
    CI), of each tap. W_FROM, W_H, W_W: elements of w's rows to the first tap, from tap to tap."""
    program = tl.program_id(0)
    k0 = program % CHANNEL_TILES * BN
    tile = program // CHANNEL_TILES
    q0 = tile % TILES_W * BW
    tile = tile // TILES_W
    p0 = tile % TILES_H * BH
    n0 = tile // TILES_H * BI
    STEPS: tl.constexpr = CI // BC
    acc = tl.zeros((BN, BI * BH * BW), tl.float32)
    for step in tl.range(0, TAPS_H * TAPS_W * STEPS):
        tap = step // STEPS
        c0 = (step - tap * STEPS) * BC
        th = tap // TAPS_W
        tw = tap - th * TAPS_W
        h = OFF_H + th * OFF_STEP_H
        v = OFF_W + tw * OFF_STEP_W
        if HALVES:
            x = source.load([n0, p0 + (h >> 1), h & 1, q0 + (v >> 1), (v & 1) * CI + c0])
        else:
            x = source.load([n0, p0 + h, q0 + v, c0])
        from_w = W_FROM + th * W_H + tw * W_W
        weights = w.load([c0, from_w + k0]).T if ACROSS else w.load([k0, from_w + c0])
        acc = tl.dot(weights, x.reshape(BI * BH * BW, BC).T, acc)
    if bias is not None:
        k = k0 + tl.arange(0, BN)
        acc += tl.load(bias + k, mask=k < CO, other=0).to(tl.float32)[:, None]
    if RELU:
        acc = tl.where(acc < 0, 0, acc)  # a NaN stays
    result.store([n0, p0, q0, k0], acc.to(T).T.reshape(BI, BH, BW, BN))


@triton.jit
def weight_grad_tma_kernel(
    dy, x, partials, TILES_H, TILES_W, ROW_TILES, COLUMN_TILES, N, P, Q, K, CI, OFF_H, OFF_W,
    TAPS: tl.constexpr, TAPS_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    ROUNDS: tl.constexpr, HALVES: tl.constexpr, INDEX: tl.constexpr,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """partials[split][k][tap][channel]. dy comes by its addresses: by TMA it would go through registers."""
    program = tl.program_id(0)
    k0 = program % ROW_TILES * BN
    program = program // ROW_TILES
    tap = program % TAPS
    program = program // TAPS
    c0 = program % COLUMN_TILES * BC
    split = program // COLUMN_TILES
    h = OFF_H + tap // TAPS_W * DILATION_H
    v = OFF_W + tap % TAPS_W * DILATION_W
    pixel = tl.arange(0, BI * BH * BW)
    k = k0 + tl.arange(0, BN)
    acc = tl.zeros((BN, BC), tl.float32)
    for i in tl.range(0, ROUNDS):
        tile = split * ROUNDS + i  # beyond the last image both are zeros
        q0 = tile % TILES_W * BW
        tile = tile // TILES_W
        p0 = tile % TILES_H * BH
        n0 = tile // TILES_H * BI
        n = n0 + pixel // (BH * BW)
        p = p0 + pixel // BW % BH
        q = q0 + pixel % BW
        exists = (n < N) & (p < P) & (q < Q)
        at = (n.to(INDEX) * P + p) * Q + q
        g = tl.load(dy + at[:, None] * K + k[None, :], mask=exists[:, None] & (k < K)[None, :], other=0)
        if HALVES:
            box = x.load([n0, p0 + (h >> 1), h & 1, q0 + (v >> 1), (v & 1) * CI + c0])
        else:
            box = x.load([n0, p0 + h, q0 + v, c0])
        acc = tl.dot(g.T, box.reshape(BI * BH * BW, BC), acc)
    c = c0 + tl.arange(0, BC)
    to = ((split * K + k).to(INDEX)[:, None] * TAPS + tap) * CI + c[None, :]
    tl.store(partials + to, acc, mask=(k < K)[:, None] & (c < CI)[None, :])


# ---- launchers ----------------------------------------------------------------------------------


class Box(NamedTuple):
    """A tile of pixels: images × rows × columns."""

    images: int
    rows: int
    columns: int


def box_of(pixels: int, n: int, height: int, width: int) -> Box:
    """The box of so many pixels, a power of 2, of which the fewest cover the images; the widest of these."""

    def boxes() -> Iterator[Box]:
        for columns in (64, 32, 16, 8, 4):
            for rows in (1 << i for i in range(9)):
                if columns * rows <= pixels:
                    yield Box(pixels // (columns * rows), rows, columns)

    return min(
        boxes(), key=lambda b: ceil_div(n, b.images) * ceil_div(height, b.rows) * ceil_div(width, b.columns)
    )


class View:
    """What TMA is told of a tensor: its size and strides from an element on, and the box that is copied.

    Checked with the first tensor; of later ones only the address is new. (It does not keep a tensor, whose
    memory is the caller's to free.)
    """

    def __init__(self, size: Sequence[int], strides: list[int], block: Sequence[int], from_: int = 0) -> None:
        self.size, self.strides, self.block, self.from_ = list(size), strides, list(block), from_
        self.checked: dict[str, Any] = {}

    def __call__(self, t: Tensor) -> Any:
        base = memory_from(t, self.from_)
        if not self.checked:
            made = TensorDescriptor(base, self.size, self.strides, self.block)
            self.checked = {name: value for name, value in vars(made).items() if name != "base"}
        descriptor = object.__new__(TensorDescriptor)
        descriptor.__dict__.update(self.checked, base=base)
        return descriptor


def image(size: tuple[int, ...], block: Sequence[int]) -> View:
    """Of a dense image (n, h, w, c)."""
    _, h, w, c = size
    return View(size, [h * w * c, w * c, c, 1], block)


def halved_image(size: tuple[int, ...], box: Box, depth: int) -> View:
    """The image as pairs of rows and of columns: (n, h / 2, 2, w / 2, 2 · c)."""
    n, h, w, c = size
    block = (box.images, box.rows, 1, box.columns, depth)
    return View((n, h // 2, 2, w // 2, 2 * c), [h * w * c, 2 * w * c, w * c, 2 * c, 1], block)


def _element(p: _C.ConvParams) -> tl.dtype:
    return tl.bfloat16 if p.dtype == _C.DType.bf16 else tl.float16


def product(p: _C.ConvParams, input_grad: bool, tile: Block) -> Run:
    """y, or dx."""
    ends = (p.c, *p.in_[1:]), (p.k, *p.out[1:])
    (ci, *from_size), (co, *to_size) = ends[::-1] if input_grad else ends
    halves = not input_grad and is_halved(p)
    columns, depth = tile.columns, tile.depth
    weights = [p.k, p.kernel[1] * p.kernel[2] * p.c]
    launches = []
    for h, w in axes(p, input_grad):
        box = box_of(tile.rows, p.n, h.grid, w.grid)
        tiles = ceil_div(p.n, box.images), ceil_div(h.grid, box.rows), ceil_div(w.grid, box.columns)
        channel_tiles = ceil_div(co, columns)
        launch = Launch(
            conv_tma_kernel, tiles[0] * tiles[1] * tiles[2] * channel_tiles,
            warps=tile.warps, stages=tile.stages,
            TILES_H=tiles[1], TILES_W=tiles[2], CHANNEL_TILES=channel_tiles, CO=co,
            OFF_H=h.off0, OFF_W=w.off0, W_FROM=(h.tap0 * p.kernel[2] + w.tap0) * p.c,
            W_H=h.tap_step * p.kernel[2] * p.c, W_W=w.tap_step * p.c,
            OFF_STEP_H=h.off_step, OFF_STEP_W=w.off_step, TAPS_H=h.taps, TAPS_W=w.taps,
            CI=ci, HALVES=halves, ACROSS=input_grad, RELU=p.relu and not input_grad, T=_element(p),
            BI=box.images, BH=box.rows, BW=box.columns, BN=columns, BC=depth,
        )  # fmt: skip
        size = (p.n, *from_size, ci)
        of_source = halved_image(size, box, depth) if halves else image(size, (*box, depth))
        of_w = View(weights, [weights[1], 1], (depth, columns) if input_grad else (columns, depth))
        # The phase's rows and columns.
        height, width = to_size
        strides = [height * width * co, h.out_step * width * co, w.out_step * co, 1]
        from_ = (h.out0 * width + w.out0) * co
        of_result = View((p.n, h.grid, w.grid, co), strides, (*box, columns), from_)
        launches.append((launch, of_source, of_w, of_result))

    def run(source: Tensor, w: Tensor, bias: Tensor | None, result: Tensor) -> None:
        for launch, of_source, of_w, of_result in launches:
            launch(of_source(source), of_w(w), of_result(result), bias)

    return run


def weight_grad(p: _C.ConvParams, tile: Block) -> Run:
    """Without the sums of dy."""
    taps, box = p.kernel[1] * p.kernel[2], box_of(tile.depth, p.n, p.out[1], p.out[2])
    tiles = ceil_div(p.n, box.images), ceil_div(p.out[1], box.rows), ceil_div(p.out[2], box.columns)
    rows, columns = tile.rows, tile.columns
    row_tiles, column_tiles = ceil_div(p.k, rows), ceil_div(p.c, columns)
    count = tiles[0] * tiles[1] * tiles[2]
    wanted = ceil_div(PROGRAMS, row_tiles * column_tiles * taps)
    # A power of 2: the compiled loop has its number of rounds, of which there should be few different ones.
    rounds = max(4, next_power_of_2(ceil_div(count, wanted)))
    splits = ceil_div(count, rounds)
    launch = Launch(
        weight_grad_tma_kernel, splits * row_tiles * column_tiles * taps, warps=tile.warps,
        stages=tile.stages,
        TILES_H=tiles[1], TILES_W=tiles[2], ROW_TILES=row_tiles, COLUMN_TILES=column_tiles,
        N=p.n, P=p.out[1], Q=p.out[2], K=p.k, CI=p.c, OFF_H=-p.pad[1], OFF_W=-p.pad[2],
        TAPS=taps, TAPS_W=p.kernel[2], DILATION_H=p.dilation[1], DILATION_W=p.dilation[2],
        ROUNDS=rounds, HALVES=is_halved(p), INDEX=tl.int64,
        BI=box.images, BH=box.rows, BW=box.columns, BN=rows, BC=columns,
    )  # fmt: skip
    finish = finish_weight_grad(p, splits)

    size = (p.n, *p.in_[1:], p.c)
    of_x = halved_image(size, box, columns) if is_halved(p) else image(size, (*box, columns))

    def run(dy: Tensor, x: Tensor, dw: Tensor) -> None:
        partials = new_partials(p, splits, dw)
        launch(dy, of_x(x), partials)
        finish(partials, dw)

    return run
