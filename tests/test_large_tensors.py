"""Tensors of more than 2**31 elements.

In the emulation they are address space that nobody has written (zeros), and of each large grid only the
last block runs: its threads go through the whole tensor in steps of the grid's threads. On a GPU they are
allocated, and the same elements looked at.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastops import _C
from fastops.backends import native
from tests import simt

# The smaller of input and output has 2**31 + 2**27 elements.
ROWS, COLUMNS = 2**15 + 2**11, 2**17
GRID = 2**16 * 256  # threads of the largest grid
DTYPE = torch.bfloat16
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.13 has the name


class Emulated:
    """Launches kernels' last blocks on sparse memory."""

    device = "cpu"

    def __init__(self) -> None:
        self.kernels = simt.load().cuda
        self.run_last_block_of(2**16)
        self.memory: list[mmap.mmap] = []

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype = DTYPE) -> Tensor:
        size = torch.Size(shape).numel()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        self.memory.append(mmap.mmap(-1, max(size, 1) * dtype.itemsize, flags=flags))
        return torch.frombuffer(self.memory[-1], dtype=dtype)[:size].view(shape)

    def run_last_block_of(self, blocks: int) -> None:
        """Of grids of so many blocks or more only the last one runs."""
        simt.load().configure("forward", "lazy", last_blocks=1, many_blocks=blocks)

    def launch(self, op: str, params: Any, *tensors: Tensor | None) -> None:
        extra = []
        if hasattr(self.kernels, f"{op}_workspace"):
            extra.append(
                self.zeros((getattr(self.kernels, f"{op}_workspace")(params),), torch.uint8).data_ptr()
            )
        if hasattr(self.kernels, f"{op}_reports"):
            extra.append(self.zeros((1,), torch.int32).data_ptr())
        getattr(self.kernels, op)(params, *(0 if t is None else t.data_ptr() for t in tensors), *extra, 0)


class OnGpu:
    device = "cuda"

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype = DTYPE) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device="cuda")

    def launch(self, op: str, params: Any, *tensors: Tensor | None) -> None:
        launcher = native.cuda_launcher(op)
        assert launcher is not None
        launcher(params, *tensors)


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Iterator[Emulated | OnGpu]:
    if request.param == "gpu":
        if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 40 << 30:
            pytest.skip("no GPU with 40 GiB free")
        yield OnGpu()
        torch.cuda.empty_cache()
        return
    reason = simt.why_unavailable() or ("the sanitizers keep shadows" if simt.MODE != "plain" else None)
    if reason:
        pytest.skip(reason)
    yield Emulated()
    simt.configure(simt.load())


def items(count: int, device: str) -> Tensor:
    """Those of `count` that the last of 2**16 blocks has, in a grid-stride loop."""
    last = torch.arange(GRID - 256, GRID, device=device)
    steps = torch.arange(-(-count // GRID), device=device)
    every = (last + GRID * steps[:, None]).flatten()
    return every[every < count]


def values(count: int, device: str) -> Tensor:
    """Random and not zero."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(1, 100, (count,), generator=generator) / 4).to(device, DTYPE)


def pooling(channels: int, adaptive: bool) -> _C.PoolParams:
    """Pairs of neighbours in a row: also what adaptive pooling to half the size has."""
    return _C.PoolParams(
        adaptive=adaptive,
        dtype=_C.DType.bf16,
        channels_last=channels > 1,
        n=1,
        c=channels,
        in_=(1, ROWS, COLUMNS // channels),
        out=(1, ROWS, COLUMNS // channels // 2),
        kernel=(1, 1, 2),
        stride=(1, 1, 2),
        pad=(0, 0, 0),
        dilation=(1, 1, 1),
        count_include_pad=True,
        positions=_C.IndexType.i64,
    )


OUTPUTS, INPUTS = ROWS * COLUMNS // 2, ROWS * COLUMNS
# channels 8: of channels_last, 16 bytes of bf16 per thread.
every_layout = pytest.mark.parametrize("channels", [1, 8], ids=["nchw", "nhwc"])
with_adaptive = pytest.mark.parametrize("adaptive", [False, True], ids=["windows", "adaptive"])


def elements(packs: Tensor, channels: int) -> Tensor:
    """The elements of packs of 8 channels, or of 1."""
    return (packs[:, None] * channels + torch.arange(channels, device=packs.device)).flatten()


def pair_of(o: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The inputs that output element o reads."""
    pixel, channel = o // channels, o % channels
    first = 2 * pixel * channels + channel
    return first, first + channels


@with_adaptive
@every_layout
def test_avg_pool(channels: int, adaptive: bool, machine: Emulated | OnGpu) -> None:
    x, y = machine.zeros((INPUTS,)), machine.zeros((OUTPUTS,))
    o = elements(items(OUTPUTS // channels, machine.device), channels)
    a, b = pair_of(o, channels)
    x[a], x[b] = values(len(o), machine.device), values(len(o), machine.device).flip(0)
    machine.launch("avg_pool", pooling(channels, adaptive), x, y)
    assert o.max() >= 2**31 and torch.equal(y[o], ((x[a].float() + x[b].float()) / 2).to(DTYPE))


@with_adaptive
@every_layout
def test_avg_pool_adjoint(channels: int, adaptive: bool, machine: Emulated | OnGpu) -> None:
    dy, dx = machine.zeros((OUTPUTS,)), machine.zeros((INPUTS,))
    i = elements(items(INPUTS // channels, machine.device), channels)
    o = i // channels // 2 * channels + i % channels
    dy[o] = values(len(o), machine.device)
    machine.launch("avg_pool_adjoint", pooling(channels, adaptive), dy, dx)
    assert i.max() >= 2**32 and torch.equal(dx[i], dy[o] / 2)


@with_adaptive
@every_layout
def test_max_pool_gather_and_scatter_add(channels: int, adaptive: bool, machine: Emulated | OnGpu) -> None:
    x, y = machine.zeros((INPUTS,)), machine.zeros((OUTPUTS,))
    positions = machine.zeros((OUTPUTS,), torch.int64)
    o = elements(items(OUTPUTS // channels, machine.device), channels)
    a, b = pair_of(o, channels)
    x[a], x[b] = values(len(o), machine.device), values(len(o), machine.device).flip(0)
    machine.launch("max_pool", pooling(channels, adaptive), x, y, positions)
    first = x[a] >= x[b]
    assert torch.equal(y[o], torch.where(first, x[a], x[b]))
    assert torch.equal(positions[o], 2 * (o // channels) + ~first)
    y[o] = 0
    machine.launch("gather", pooling(channels, adaptive), x, positions, y)
    assert torch.equal(y[o], torch.where(first, x[a], x[b]))
    i = elements(items(INPUTS // channels, machine.device), channels)
    o = i // channels // 2 * channels + i % channels
    y[o] = values(len(o), machine.device)
    positions[o] = 2 * (o // channels) + (o % 3 == 0)
    dx = machine.zeros((INPUTS,))
    machine.launch("scatter_add", pooling(channels, adaptive), y, positions, dx)
    assert torch.equal(dx[i], torch.where(positions[o] == i // channels, y[o], 0))


@every_layout
def test_max_unpool(channels: int, machine: Emulated | OnGpu) -> None:
    count = 2048  # inputs, far fewer than outputs
    params = _C.UnpoolParams(
        dtype=_C.DType.bf16,
        channels_last=channels > 1,
        n=1,
        c=channels,
        in_=(1, 1, count // channels),
        out=(1, ROWS, COLUMNS // channels // 2),
    )
    y = machine.zeros((OUTPUTS,))
    o = elements(items(OUTPUTS // 8, machine.device), 8)[-count:]  # 16 bytes of pixels, or of channels
    x, indices = values(count, machine.device), o // channels
    machine.launch("max_unpool", params, x, indices, y)
    assert torch.equal(y[o], x)
    dx = machine.zeros((count,))
    machine.launch("max_unpool_adjoint", params, y, indices, dx)
    assert torch.equal(dx, x)


def resizing(channels: int, filter: _C.Filter) -> _C.InterpolateParams:
    """Rows to twice their length."""
    return _C.InterpolateParams(
        dtype=_C.DType.bf16,
        channels_last=channels > 1,
        n=1,
        c=channels,
        in_=(1, ROWS, COLUMNS // channels // 2),
        out=(1, ROWS, COLUMNS // channels),
        filter=filter,
    )


@pytest.mark.parametrize("filter", [_C.Filter.nearest, _C.Filter.nearest_exact], ids=["nearest", "exact"])
@every_layout
def test_nearest(channels: int, filter: _C.Filter, machine: Emulated | OnGpu) -> None:
    small, large = machine.zeros((OUTPUTS,)), machine.zeros((INPUTS,))
    i = elements(items(INPUTS // 8, machine.device), 8)
    o = i // channels // 2 * channels + i % channels
    small[o] = values(len(o), machine.device)
    params = resizing(channels, filter)
    machine.launch("interpolate_nearest", params, small, large)
    assert torch.equal(large[i], small[o])
    o = elements(items(OUTPUTS // 8, machine.device), 8)  # 16 bytes of pixels, or of channels
    a, b = pair_of(o, channels)
    large[a], large[b] = values(len(o), machine.device), values(len(o), machine.device).flip(0)
    machine.launch("interpolate_nearest_adjoint", params, large, small)
    assert torch.equal(small[o], (large[a].float() + large[b].float()).to(DTYPE))


@pytest.mark.parametrize("antialias", [False, True], ids=["plain", "antialias"])
@every_layout
def test_linear(channels: int, antialias: bool, machine: Emulated | OnGpu) -> None:
    """Output 2k has 3/4 of input k and 1/4 of the one before it, output 2k + 1 of the one after; antialiasing
    changes nothing where images grow."""
    small, large = machine.zeros((OUTPUTS,)), machine.zeros((INPUTS,))
    params = resizing(channels, _C.Filter.linear)
    params.antialias = antialias
    row = COLUMNS // channels // 2
    i = elements(items(INPUTS // channels, machine.device), channels)
    k, channel = i // channels // 2, i % channels
    side = torch.where(i // channels % 2 == 0, -1, 1)
    neighbour = torch.where(k // row == (k + side) // row, k + side, k)  # or the edge of the row
    near, far = k * channels + channel, neighbour * channels + channel
    small[near] = values(len(i), machine.device)
    machine.launch("interpolate_weighted", params, small, large)
    expected = (0.75 * small[near].float() + 0.25 * small[far].float()).to(DTYPE)
    assert i.max() >= 2**32 and torch.equal(large[i], expected)

    o = elements(items(OUTPUTS // channels, machine.device), channels)
    o = o[(o // channels % row > 0) & (o // channels % row < row - 1)]  # edges have other weights
    first = 2 * (o // channels) * channels + o % channels
    reads = [(first + j * channels, 0.75 if j in (0, 1) else 0.25) for j in range(-1, 3)]
    large.view(-1)[torch.cat([at for at, _ in reads])] = values(4 * len(o), machine.device)
    machine.launch("interpolate_weighted_adjoint", params, large, small)
    expected = sum(weight * large[at].float() for at, weight in reads)
    assert isinstance(expected, Tensor) and torch.equal(small[o], expected.to(DTYPE))


@every_layout
def test_batch_norm(channels: int, machine: Emulated | OnGpu) -> None:
    """Everything is zero but for the end of the tensor, which the last block has."""
    if isinstance(machine, Emulated):
        machine.run_last_block_of(256)
    n, c, plane, count = 2, 8, 2**27 + 2**23, 4096
    params = _C.BatchNormParams(
        dtype=_C.DType.bf16, param_dtype=_C.DType.f32, channels_last=channels > 1, n=n, c=c, in_=(1, 1, plane)
    )
    x, dy, y, dx = (machine.zeros((n * c * plane,)) for _ in range(4))
    assert x.numel() > 2**31
    x[-count:], dy[-count:] = values(count, machine.device), values(count, machine.device).flip(0)
    w, b, mean, invstd = (torch.arange(1.0, c + 1, device=machine.device) / k for k in (1, 2, 4, 8))
    dw, db = torch.zeros_like(w), torch.zeros_like(w)
    machine.launch("batch_norm_apply", params, x, w, b, mean, invstd, None, y)
    machine.launch("batch_norm_backward", params, dy, x, w, b, mean, invstd, None, dx, dw, db, None)
    channel = torch.arange(count, device=machine.device) % c if channels > 1 else torch.full((count,), c - 1)
    channel = channel.to(machine.device)
    centred = (x[-count:].float() - mean[channel]) * invstd[channel]
    torch.testing.assert_close(y[-count:].float(), centred * w[channel] + b[channel], rtol=1e-2, atol=1e-2)
    expected = dy[-count:].float() * (w * invstd)[channel]
    torch.testing.assert_close(dx[-count:].float(), expected, rtol=1e-2, atol=1e-2)
    sums = torch.zeros_like(w).index_add_(0, channel, dy[-count:].float())
    dots = torch.zeros_like(w).index_add_(0, channel, dy[-count:].float() * centred)
    torch.testing.assert_close(db, sums)
    torch.testing.assert_close(dw, dots, rtol=1e-4, atol=1e-3)


def direct_conv(channels: int, in_: tuple[int, int], stride: int, groups: int, nhwc: bool) -> _C.ConvParams:
    """3x3 windows with as many channels in as out, by the kernels that serve anything."""
    return _C.ConvParams(
        dtype=_C.DType.bf16,
        channels_last=nhwc,
        n=1,
        c=channels,
        k=channels,
        groups=groups,
        in_=(1, *in_),
        out=(1, in_[0] // stride, in_[1] // stride),
        kernel=(1, 3, 3),
        stride=(1, stride, stride),
        pad=(0, 1, 1),
        dilation=(1, 1, 1),
        kernel_family=_C.ConvKernel.direct,
    )


def images(machine: Emulated | OnGpu, channels: int, size: tuple[int, int], nhwc: bool) -> Tensor:
    """One image of zeros."""
    if nhwc:
        return machine.zeros((1, *size, channels)).permute(0, 3, 1, 2)
    return machine.zeros((1, channels, *size))


# 16 channels: tiles of 64 channels, and in channels_last 16 bytes of x at a time.
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("channels", "stride"), [(2, 1), (16, 1), (16, 2)])
def test_direct_conv(channels: int, stride: int, nhwc: bool, machine: Emulated | OnGpu) -> None:
    """The last block of the input gradient has the last phase: odd rows and columns, at stride 2."""
    size = (ROWS, COLUMNS // channels)
    params = direct_conv(channels, size, stride, 1, nhwc)
    x = images(machine, channels, size, nhwc)
    y = images(machine, channels, (size[0] // stride, size[1] // stride), nhwc)
    w = values(channels * channels * 9, machine.device).view(channels, channels, 3, 3)
    # The corner that the last block reads, and the part of it that it writes: 32 pixels of a row.
    rows, columns = slice(-8, None), slice(-128, None)
    x_corner, y_corner = x[..., rows, columns], y[..., rows, columns]
    x_corner.copy_(values(x_corner.numel(), machine.device).view(x_corner.shape))
    machine.launch("conv", params, x, w, None, y)
    expected = F.conv2d(x_corner.cpu().double(), w.cpu().double(), stride=stride, padding=1)
    torch.testing.assert_close(y[..., -1, -32:].cpu().double(), expected[..., -1, -32:], rtol=1e-2, atol=1e-2)
    y_corner.copy_(values(y_corner.numel(), machine.device).view(y_corner.shape))
    machine.launch("conv_input_grad", params, y, w, None, x)
    expected = F.conv_transpose2d(
        y_corner.cpu().double(), w.cpu().double(), stride=stride, padding=1, output_padding=stride - 1
    )
    last = slice(-32 * stride + stride - 1, None, stride)
    assert x.numel() > 2**32
    torch.testing.assert_close(x[..., -1, last].cpu().double(), expected[..., -1, last], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
def test_depthwise_conv(nhwc: bool, machine: Emulated | OnGpu) -> None:
    """So many channels that the last block has the last ones' last pixels."""
    channels, size, some = 2**18 + 2**14, (64, 128), 8
    params = direct_conv(channels, size, 1, channels, nhwc)
    params.kernel_family = _C.ConvKernel.depthwise
    x, y = images(machine, channels, size, nhwc), images(machine, channels, size, nhwc)
    assert x.numel() > 2**31
    w = machine.zeros((channels, 1, 3, 3))
    w[-1] = values(9, machine.device).view(3, 3)
    x[0, -1] = values(x[0, -1].numel(), machine.device).view(size)
    machine.launch("conv", params, x, w, None, y)
    expected = F.conv2d(x[:, -1:].cpu().double(), w[-1:].cpu().double(), padding=1)[0, 0]
    found = y[0, -1, -1, -some:].cpu().double()
    torch.testing.assert_close(found, expected[-1, -some:], rtol=1e-2, atol=1e-2)
    y[0, -1] = values(y[0, -1].numel(), machine.device).view(size).flip(0)
    machine.launch("conv_input_grad", params, y, w, None, x)
    expected = F.conv_transpose2d(y[:, -1:].cpu().double(), w[-1:].cpu().double(), padding=1)[0, 0]
    found = x[0, -1, -1, -some:].cpu().double()
    torch.testing.assert_close(found, expected[-1, -some:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "family", [_C.ConvKernel.direct, _C.ConvKernel.depthwise], ids=["direct", "depthwise"]
)
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
def test_direct_weight_grad(nhwc: bool, family: _C.ConvKernel, machine: Emulated | OnGpu) -> None:
    """So many groups that the last block has the last one, all of it."""
    groups, size = 2**18 + 2**14, (64, 128)
    params = direct_conv(groups, size, 1, groups, nhwc)
    params.kernel_family = family
    if isinstance(machine, Emulated) and nhwc and family is _C.ConvKernel.depthwise:
        pytest.skip("the last block adds up what the others found")
    x, dy = images(machine, groups, size, nhwc), images(machine, groups, size, nhwc)
    assert x.numel() > 2**31
    x[0, -1] = values(x[0, -1].numel(), machine.device).view(size)
    dy[0, -1] = values(x[0, -1].numel(), machine.device).view(size).flip(0)
    dw, db = machine.zeros((groups, 1, 3, 3)), machine.zeros((groups,))
    machine.launch("conv_weight_grad", params, dy, x, dw, db)
    expected = F.conv2d(x[:, -1:].cpu().double(), dy[:, -1:].cpu().double(), padding=1)
    torch.testing.assert_close(dw[-1:].cpu().double(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(db[-1].cpu().double(), dy[0, -1].cpu().double().sum(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
def test_stem(nhwc: bool, machine: Emulated | OnGpu) -> None:
    """So many channels that the last block has the last ones, of all images."""
    if isinstance(machine, Emulated):
        machine.run_last_block_of(1024)
    n, k, size, some = 17, 2**17, (32, 32), 64
    params = direct_conv(1, size, 1, 1, nhwc)
    params.n, params.k, params.kernel_family = n, k, _C.ConvKernel.stem
    x, y = machine.zeros((n, 1, *size)), machine.zeros((n, *size, k) if nhwc else (n, k, *size))
    assert y.numel() > 2**31
    w = values(k * 9, machine.device).view(k, 1, 3, 3)
    x[-1, 0] = values(x[-1, 0].numel(), machine.device).view(size)
    machine.launch("conv", params, x, w, None, y)
    last = (y.permute(0, 3, 1, 2) if nhwc else y)[-1:, -some:]
    expected = F.conv2d(x[-1:].cpu().double(), w[-some:].cpu().double(), padding=1)
    torch.testing.assert_close(last.cpu().double(), expected, rtol=1e-2, atol=1e-2)
    last.copy_(values(last.numel(), machine.device).view(last.shape))
    dw, db = machine.zeros((k, 1, 3, 3)), machine.zeros((k,))
    machine.launch("conv_weight_grad", params, y, x, dw, db)
    # The last block of those that add up the parts has the last elements: db's.
    expected = last.cpu().double().sum((0, 2, 3))
    torch.testing.assert_close(db[-some:].cpu().double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
def test_gemm_conv(nhwc: bool, machine: Emulated | OnGpu) -> None:
    """So many images that the last block has the last one's last pixels."""
    n, channels, size, some = 2**15 + 1, 16, (64, 64), 64
    params = direct_conv(channels, size, 1, 1, nhwc)
    params.n, params.kernel_family = n, _C.ConvKernel.gemm
    x, y = (
        machine.zeros((n, *size, channels)).permute(0, 3, 1, 2)
        if nhwc
        else machine.zeros((n, channels, *size))
        for _ in range(2)
    )
    assert x.numel() > 2**31
    w = values(channels * channels * 9, machine.device).view(channels, channels, 3, 3)
    x[-1] = values(x[-1].numel(), machine.device).view(x[-1].shape)
    machine.launch("conv", params, x, w, None, y)
    expected = F.conv2d(x[-1:].cpu().double(), w.cpu().double(), padding=1)
    last = y[-1:, :, -1, -some:].cpu().double()
    torch.testing.assert_close(last, expected[:, :, -1, -some:], rtol=1e-2, atol=5e-2)
    y[-1] = values(y[-1].numel(), machine.device).view(y[-1].shape).flip(0)
    machine.launch("conv_input_grad", params, y, w, None, x)
    expected = F.conv_transpose2d(y[-1:].cpu().double(), w.cpu().double(), padding=1)
    last = x[-1:, :, -1, -some:].cpu().double()
    torch.testing.assert_close(last, expected[:, :, -1, -some:], rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
def test_gemm_weight_grad(nhwc: bool, machine: Emulated | OnGpu) -> None:
    """So many channels that the last block has the last ones, of all images; db is the last to be written."""
    if isinstance(machine, Emulated):
        machine.run_last_block_of(512)
    n, k, size, some = 17, 2**17, (32, 32), 64
    params = direct_conv(8, size, 1, 1, nhwc)
    params.n, params.k, params.kernel, params.pad = n, k, (1, 1, 1), (0, 0, 0)
    params.kernel_family = _C.ConvKernel.gemm
    x, dy = machine.zeros((n, 8, *size)), machine.zeros((n, *size, k) if nhwc else (n, k, *size))
    assert dy.numel() > 2**31
    last = (dy.permute(0, 3, 1, 2) if nhwc else dy)[-1:, -some:]
    last.copy_(values(last.numel(), machine.device).view(last.shape))
    dw, db = machine.zeros((k, 8, 1, 1)), machine.zeros((k,))
    machine.launch("conv_weight_grad", params, dy, x, dw, db)
    expected = last.cpu().double().sum((0, 2, 3))
    torch.testing.assert_close(db[-some:].cpu().double(), expected, rtol=1e-2, atol=1e-2)
