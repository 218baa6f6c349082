# ruff: noqa: E501 (a case a line)
"""The CUDA kernels of convolution, one family at a time: each pass of every family over the shapes that it
serves, by dtype and layout."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastops import _C
from fastops.backends import BACKENDS
from fastops.ops import layout
from fastops.ops.conv import ConvSpec, conv_params
from tests import simt
from tests.conftest import device_of
from tests.tolerance import assert_accurate

K = _C.ConvKernel
Pair = tuple[int, int]


class Conv(NamedTuple):
    """A convolution of square or (height, width) options; `extra` is padding behind, beyond that before."""

    n: int
    c: int
    k: int
    size: Pair
    kernel: Pair
    why: str
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    extra: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    tile: Pair = (0, 0)  # where it is not to be the plan's choice
    splits: int = 0

    def __str__(self) -> str:
        return self.why.replace(" ", "_")

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Of x, w and y."""
        out = [
            (i + 2 * p + e - d * (r - 1) - 1) // s + 1
            for i, p, e, d, r, s in zip(
                self.size, self.padding, self.extra, self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        return (
            (self.n, self.c, *self.size),
            (self.k, self.c // self.groups, *self.kernel),
            (self.n, self.k, *out),
        )


DENSE = [
    Conv(2, 16, 16, (8, 8), (3, 3), "plain"),
    Conv(1, 24, 40, (9, 7), (3, 3), "same padding", padding=(1, 1)),
    Conv(2, 16, 24, (7, 9), (1, 1), "1x1"),
    Conv(2, 32, 16, (9, 9), (1, 1), "1x1 stride 2", stride=(2, 2)),
    Conv(1, 16, 16, (13, 11), (3, 3), "stride 2", stride=(2, 2), padding=(1, 1)),
    Conv(1, 16, 8, (13, 11), (3, 3), "stride 3", stride=(3, 3), padding=(1, 1)),
    Conv(1, 8, 16, (11, 12), (2, 3), "stride beyond the kernel", stride=(3, 2), padding=(0, 1)),
    Conv(1, 16, 16, (12, 12), (3, 3), "dilation 2", padding=(2, 2), dilation=(2, 2)),
    Conv(1, 8, 8, (15, 14), (3, 3), "stride 2 dilation 3", stride=(2, 2), padding=(2, 2), dilation=(3, 3)),
    Conv(1, 8, 8, (17, 16), (3, 2), "stride 4 dilation 2", stride=(4, 4), padding=(3, 3), dilation=(2, 2)),
    Conv(1, 16, 8, (9, 8), (2, 4), "asymmetric padding", padding=(0, 1), extra=(1, 1)),
    Conv(1, 8, 16, (12, 12), (5, 5), "5x5", padding=(2, 2)),
    Conv(1, 8, 8, (11, 13), (7, 7), "7x7", padding=(3, 3)),
    Conv(1, 8, 8, (5, 12), (1, 7), "1x7", padding=(0, 3)),
    Conv(1, 8, 8, (3, 3), (5, 5), "kernel beyond the input", padding=(2, 2)),
    Conv(3, 20, 12, (5, 5), (3, 3), "C and K tails", padding=(1, 1)),
    Conv(2, 9, 13, (6, 5), (3, 3), "odd C and K", padding=(1, 1)),
    Conv(1, 8, 3, (7, 7), (3, 3), "K of three", padding=(1, 1)),
    Conv(1, 3, 16, (9, 10), (3, 3), "C of three", padding=(1, 1)),
    Conv(2, 136, 72, (4, 5), (3, 3), "many channels", padding=(1, 1)),
    Conv(1, 16, 136, (12, 12), (3, 3), "several tiles", padding=(1, 1)),
    Conv(1, 20, 17, (1, 1), (1, 1), "one pixel"),
]  # fmt: skip
GROUPED = [
    Conv(2, 16, 32, (8, 9), (3, 3), "groups of 8", padding=(1, 1), groups=2),
    Conv(1, 48, 24, (7, 7), (3, 3), "groups of 24 and 12", stride=(2, 2), padding=(1, 1), groups=2),
    Conv(1, 22, 26, (7, 7), (3, 3), "groups of 11 and 13", padding=(1, 1), groups=2),
]  # fmt: skip
SMALL_GROUPS = [
    Conv(2, 8, 12, (9, 9), (3, 3), "groups of 2 and 3", padding=(1, 1), groups=4),
    Conv(2, 16, 16, (9, 7), (3, 3), "groups of 4", padding=(1, 1), groups=4),
    Conv(1, 32, 32, (8, 8), (3, 3), "groups of 2 stride 2", stride=(2, 2), padding=(1, 1), groups=16),
]  # fmt: skip
DEPTHWISE = [
    Conv(2, 16, 16, (9, 11), (3, 3), "depthwise", padding=(1, 1), groups=16),
    Conv(2, 6, 6, (9, 11), (3, 3), "depthwise odd C", padding=(1, 1), groups=6),
    Conv(1, 19, 19, (12, 37), (5, 5), "depthwise 5x5 stride 2", stride=(2, 2), padding=(2, 2), groups=19),
    Conv(1, 8, 8, (14, 40), (5, 5), "depthwise 5x5", padding=(2, 2), groups=8),
    Conv(1, 8, 8, (16, 16), (7, 7), "depthwise 7x7", padding=(3, 3), groups=8),
    Conv(1, 24, 24, (7, 7), (7, 7), "depthwise 7x7 small", padding=(3, 3), groups=24),
    Conv(1, 8, 8, (32, 35), (3, 3), "depthwise stride 2", stride=(2, 2), padding=(1, 1), groups=8),
    Conv(1, 8, 8, (17, 15), (3, 3), "depthwise stride 3 dilation 2", stride=(3, 3), padding=(2, 2), dilation=(2, 2), groups=8),
    Conv(1, 8, 8, (12, 12), (3, 3), "depthwise dilation 2", padding=(2, 2), dilation=(2, 2), groups=8),
    Conv(1, 5, 15, (10, 10), (3, 3), "multiplier 3", groups=5),
    Conv(1, 8, 16, (9, 9), (3, 3), "multiplier 2 stride 2", stride=(2, 2), padding=(1, 1), groups=8),
    Conv(1, 8, 8, (5, 5), (2, 2), "phases without a tap", stride=(3, 3), groups=8),
    Conv(1, 8, 8, (6, 12), (1, 7), "depthwise 1x7", padding=(0, 3), groups=8),
    Conv(1, 8, 8, (9, 8), (2, 4), "depthwise asymmetric", padding=(0, 1), extra=(1, 1), groups=8),
    Conv(1, 4, 4, (20, 21), (13, 13), "depthwise large kernel", padding=(6, 6), groups=4),
]  # fmt: skip
# What only the depthwise kernels have paths for.
DEPTHWISE_TILES = [
    Conv(1, 72, 72, (5, 9), (3, 3), "depthwise tiles of channels", padding=(1, 1), groups=72),
    Conv(2, 4, 4, (3072, 1), (3, 1), "depthwise weights used again", padding=(1, 0), groups=4),
    Conv(2, 4, 4, (3072, 1), (17, 1), "depthwise weights in parts used again", padding=(8, 0), groups=4),
    Conv(2, 6, 12, (21, 18), (8, 9), "multiplier 2 kernel in parts", stride=(1, 2), padding=(4, 4), groups=6),
    Conv(1, 8, 8, (10, 9), (3, 5), "depthwise stride 2 along one axis", stride=(2, 1), padding=(1, 2), groups=8),
    Conv(2, 8, 8, (7, 9), (1, 1), "depthwise 1x1", groups=8),
    Conv(1, 4, 4, (15, 11), (3, 3), "depthwise stride 4 dilation 2", stride=(4, 4), padding=(1, 1), dilation=(2, 2), groups=4),
]  # fmt: skip
STEMS = [
    Conv(1, 3, 64, (21, 23), (7, 7), "ResNet stem", stride=(2, 2), padding=(3, 3)),
    Conv(2, 3, 16, (18, 35), (3, 3), "3x3 stem", stride=(2, 2), padding=(1, 1)),
    Conv(1, 1, 8, (12, 13), (7, 7), "grey stem", stride=(2, 2), padding=(3, 3)),
    Conv(1, 4, 20, (12, 14), (3, 3), "four channels", stride=(2, 2), padding=(1, 1)),
    Conv(1, 2, 72, (9, 40), (3, 3), "two channels", stride=(2, 2), padding=(0, 1)),
]  # fmt: skip
# What only the stems' kernels have paths for.
STEM_TILES = [
    Conv(1, 3, 16, (10, 19), (3, 3), "odd distances of pixels", padding=(1, 1)),
    Conv(2, 3, 130, (20, 70), (3, 3), "stem of many K and pixels", stride=(2, 2), padding=(1, 1)),
    Conv(1, 4, 40, (13, 17), (7, 7), "stem of many taps", stride=(2, 2), padding=(3, 3)),
    Conv(2, 1, 9, (14, 50), (4, 5), "stem stride 3 and 1", stride=(3, 1), padding=(1, 2), extra=(1, 0)),
    Conv(1, 3, 24, (19, 30), (4, 4), "patches", stride=(4, 4)),
    Conv(40, 1, 8, (3, 18), (3, 3), "more images than blocks"),
]  # fmt: skip

HOPPER = [  # beside DENSE, of which it serves what has whole 8 channels
    Conv(1, 8, 8, (7, 9), (3, 3), "hopper plain", padding=(1, 1)),
    Conv(2, 72, 72, (9, 10), (3, 3), "hopper tiles of channels and pixels", padding=(1, 1)),
    Conv(3, 64, 136, (8, 8), (1, 1), "hopper images across tiles"),
    Conv(1, 136, 8, (12, 13), (3, 2), "hopper more steps than stages", stride=(2, 1), padding=(1, 0)),
    Conv(1, 8, 16, (23, 24), (3, 3), "hopper stride 8 and 5", stride=(8, 5), padding=(2, 1)),
    Conv(1, 8, 8, (40, 37), (2, 3), "hopper dilation 30 and 17", padding=(15, 17), dilation=(30, 17)),
    Conv(2, 8, 8, (6, 5), (2, 2), "hopper padding beyond the kernel", padding=(4, 3), extra=(0, 1)),
    Conv(2, 72, 136, (9, 10), (3, 3), "hopper 128 channels", padding=(1, 1), tile=(128, 128)),
    Conv(3, 64, 72, (10, 11), (3, 3), "hopper phases", stride=(2, 2), padding=(1, 1), tile=(128, 128)),
    Conv(1, 136, 264, (8, 9), (3, 2), "hopper 256 channels", padding=(1, 0), tile=(128, 256)),
    Conv(2, 40, 24, (9, 11), (2, 3), "hopper phases of 256", stride=(2, 1), tile=(128, 256)),
    Conv(3, 16, 24, (9, 9), (3, 3), "hopper parts", padding=(1, 1), splits=3),
    Conv(17, 8, 8, (12, 12), (1, 1), "hopper more tiles than places"),
    Conv(33, 8, 8, (12, 12), (1, 1), "hopper more tiles of a block than stages", tile=(128, 128)),
    Conv(7, 8, 16, (12, 12), (1, 2), "hopper more tiles of 256 than places", stride=(1, 2), tile=(128, 256)),
    Conv(1, 64, 512, (4, 4), (3, 3), "hopper large w", padding=(1, 1), splits=2),
]  # fmt: skip

TOEPLITZ = [
    Conv(1, 8, 8, (12, 13), (9, 9), "toeplitz 9x9", padding=(4, 4), groups=8),
    Conv(2, 16, 16, (9, 10), (3, 17), "toeplitz of the longest of the shorter", padding=(1, 8), groups=16),
    Conv(1, 8, 8, (34, 40), (3, 11), "toeplitz in four squares", padding=(1, 5), groups=8),
    Conv(1, 8, 8, (20, 21), (31, 31), "toeplitz 31x31", padding=(15, 15), groups=8),
    Conv(1, 11, 11, (8, 40), (1, 33), "toeplitz of the longest, channels left over", groups=11),
    Conv(1, 8, 8, (5, 6), (4, 11), "toeplitz padding beyond the kernel", padding=(5, 12), groups=8),
    Conv(2, 16, 16, (35, 20), (32, 32), "toeplitz, the most taps that a gradient has", padding=(16, 15), groups=16),
    Conv(3, 8, 8, (20, 70), (17, 9), "toeplitz, all pieces in one part", padding=(8, 4), groups=8, splits=1),
    Conv(2, 13, 13, (33, 50), (9, 13), "toeplitz, an uneven part", padding=(4, 6), groups=13, splits=5),
    Conv(1, 8, 8, (12, 20), (9, 16), "toeplitz, as wide as a tile", padding=(4, 8), groups=8),
]  # fmt: skip

EDGES = Conv(1, 3, 8, (12, 22), (3, 3), "last row and column in no window", stride=(2, 2))

# Which cases each family of kernels is tried on.
FAMILIES: dict[Any, list[Conv]] = {
    K.direct: [*DENSE, *GROUPED, *SMALL_GROUPS, *DEPTHWISE, *STEMS],
    K.depthwise: [*DEPTHWISE, *DEPTHWISE_TILES],
    K.stem: [*STEMS, *STEM_TILES],
    K.gemm: [*DENSE, *GROUPED, *STEMS],
    K.hopper: [*HOPPER, *DENSE],
    K.toeplitz: TOEPLITZ,
}
# Element types, with whether fp32 is multiplied in TF32; those of each family.
NARROW = {"float16": (torch.float16, False), "bfloat16": (torch.bfloat16, False)}
STRICT = {"float32": (torch.float32, False), **NARROW}
EXACT = {"float64": (torch.float64, False), **STRICT}
TENSOR = {"tf32": (torch.float32, True), **STRICT}
DTYPES = {
    K.direct: EXACT,
    K.depthwise: EXACT,
    K.stem: TENSOR,
    K.gemm: TENSOR,
    K.hopper: NARROW,
    K.toeplitz: NARROW,
}
LAYOUTS = {"nchw": False, "nhwc": True}
PASSES = {"y": _C.ConvPass.forward, "dx": _C.ConvPass.input_grad, "dw": _C.ConvPass.weight_grad}
GPU = _C.cuda.device() if torch.cuda.is_available() else _C.Device()
every_layout = pytest.mark.parametrize("channels_last", LAYOUTS.values(), ids=LAYOUTS)


def params_of(case: Conv, dtype: torch.dtype, tf32: bool, channels_last: bool, kernel: Any) -> Any:
    """The kernels' params for a case."""
    memory_format = layout.CHANNELS_LAST if channels_last else layout.CONTIGUOUS
    spec = ConvSpec(case.stride, case.padding, case.dilation, case.groups)
    params = conv_params.__wrapped__(spec, *case.shapes(), dtype, memory_format, memory_format)
    params.tf32, params.kernel_family = tf32, kernel
    (params.tile_m, params.tile_n), params.splits = case.tile, case.splits
    return params


def every(names: set[str] | None = None, *, passes: str = "", cases: Any = FAMILIES) -> Any:
    """The families' cases in each layout and dtype (or those named) in which these serve all of the passes,
    or, if none is said, any."""
    table = []
    for kernel, some in cases.items():
        for case, name, where in product(some, DTYPES[kernel], LAYOUTS):
            dtype = DTYPES[kernel][name]
            params = params_of(case, *dtype, LAYOUTS[where], kernel)
            served = {p for p, code in PASSES.items() if _C.conv_kernel_serves(kernel, params, code, GPU)}
            if (names is None or name in names) and (served >= set(passes.split()) if passes else served):
                values = kernel, case, *dtype, LAYOUTS[where]
                table.append(pytest.param(*values, id=f"{kernel.name}-{case}-{name}-{where}"))
    return pytest.mark.parametrize(("kernel", "case", "dtype", "tf32", "channels_last"), table)


backends = pytest.mark.parametrize(
    "backend",
    [
        *([simt.NAME] if simt.why_unavailable() is None else []),
        *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []),
    ],
    indirect=True,
)


class Call(NamedTuple):
    """One convolution: its tensors, and the kernels' params."""

    x: Tensor
    w: Tensor
    b: Tensor
    dy: Tensor
    params: Any
    memory_format: torch.memory_format

    def empty(self, like: Tensor) -> Tensor:
        """For a result: filled with what must be overwritten."""
        return torch.full_like(like, float("nan"))


def make(case: Conv, dtype: torch.dtype, tf32: bool, channels_last: bool, kernel: Any, device: str) -> Call:
    if kernel == K.hopper and device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("kernels for another GPU")
    generator = torch.Generator().manual_seed(3)
    memory_format = layout.CHANNELS_LAST if channels_last else layout.CONTIGUOUS

    def random(*shape: int) -> Tensor:
        t = torch.randn(shape, generator=generator).to(device, dtype)
        return t.contiguous(memory_format=memory_format) if len(shape) == 4 else t

    x_shape, w_shape, y_shape = case.shapes()
    params = params_of(case, dtype, tf32, channels_last, kernel)
    return Call(random(*x_shape), random(*w_shape), random(case.k), random(*y_shape), params, memory_format)


def to_tf32(t: Tensor) -> Tensor:
    """fp32, rounded to the 10 bits that TF32 has."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def reference(case: Conv, call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    """What torch computes in a dtype; in TF32, which it has on GPUs alone, what that would be."""
    tensors = [t.detach().to(dtype) for t in (call.x, call.w, call.b, call.dy)]
    rounded = [to_tf32(t) if call.params.tf32 and dtype is torch.float32 else t for t in tensors]
    x, w, b, dy = rounded[0].requires_grad_(), rounded[1].requires_grad_(), tensors[2], rounded[3]
    (top, left), (below, right) = case.padding, case.extra
    padded = F.pad(x, (left, left + right, top, top + below))
    y = F.conv2d(padded, w, b, case.stride, 0, case.dilation, case.groups)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    return {"y": y.detach(), "dx": dx, "dw": dw, "db": tensors[3].sum((0, 2, 3))}


def run(op: str, params: Any, *tensors: Tensor | None, backend: str) -> None:
    launcher = BACKENDS[backend].launcher(op)
    assert launcher is not None
    launcher(params, *tensors)


def results(
    call: Call, kernel: Any, backend: str, passes: tuple[str, ...] = ("y", "dx", "dw")
) -> dict[str, Tensor]:
    """Of the passes that the kernels serve."""
    p, found = call.params, {}
    served = [name for name in passes if _C.conv_kernel_serves(kernel, p, PASSES[name], GPU)]
    if "y" in served:
        found["y"] = call.empty(call.dy)
        run("conv", p, call.x, call.w, call.b, found["y"], backend=backend)
    if "dx" in served:
        found["dx"] = call.empty(call.x)
        run("conv_input_grad", p, call.dy, call.w, None, found["dx"], backend=backend)
    if "dw" in served:
        found["dw"], found["db"] = call.empty(call.w), call.empty(call.b)
        run("conv_weight_grad", p, call.dy, call.x, found["dw"], found["db"], backend=backend)
    return found


@backends
@every()
def test_against_torch(
    kernel: Any, case: Conv, dtype: torch.dtype, tf32: bool, channels_last: bool, backend: str
) -> None:
    call = make(case, dtype, tf32, channels_last, kernel, device_of(backend))
    found = results(call, kernel, backend)
    assert "y" in found or "dx" in found or "dw" in found
    exact, theirs = reference(case, call, torch.float64), reference(case, call, dtype)
    for name, value in found.items():
        assert_accurate(value, theirs[name], exact[name], name)


@backends
@every({"float32", "bfloat16"})
def test_bias_and_relu(
    kernel: Any, case: Conv, dtype: torch.dtype, tf32: bool, channels_last: bool, backend: str
) -> None:
    """The epilogues: with bias and ReLU; without bias; a bias of the input gradient."""
    call = make(case, dtype, tf32, channels_last, kernel, device_of(backend))
    exact, theirs = reference(case, call, torch.float64), reference(case, call, dtype)
    if _C.conv_kernel_serves(kernel, call.params, _C.ConvPass.forward, GPU):
        y = call.empty(call.dy)
        run("conv", call.params, call.x, call.w, None, y, backend=backend)
        bare = call._replace(b=torch.zeros_like(call.b))
        wanted = reference(case, bare, torch.float64)
        assert_accurate(y, reference(case, bare, dtype)["y"], wanted["y"], "without bias")
        call.params.relu = True
        run("conv", call.params, call.x, call.w, call.b, y, backend=backend)
        assert_accurate(y, theirs["y"].relu(), exact["y"].relu(), "with ReLU")
        call.params.relu = False
    if _C.conv_kernel_serves(kernel, call.params, _C.ConvPass.input_grad, GPU):
        dx, bias = call.empty(call.x), torch.arange(case.c, dtype=dtype, device=call.x.device)
        run("conv_input_grad", call.params, call.dy, call.w, bias, dx, backend=backend)
        bias_of = [r["dx"] + bias.to(r["dx"].dtype).view(-1, 1, 1) for r in (theirs, exact)]
        assert_accurate(dx, *bias_of, "input gradient with bias")


@backends
@every({"float32", "bfloat16"}, passes="dx dw")
def test_both_gradients(
    kernel: Any, case: Conv, dtype: torch.dtype, tf32: bool, channels_last: bool, backend: str
) -> None:
    """What one launch for both gradients gives, where a family has one; with the bias's and without."""
    call = make(case, dtype, tf32, channels_last, kernel, device_of(backend))
    exact, theirs = reference(case, call, torch.float64), reference(case, call, dtype)
    found = {"dx": call.empty(call.x), "dw": call.empty(call.w), "db": call.empty(call.b)}
    run("conv_backward", call.params, call.dy, call.x, call.w, *found.values(), backend=backend)
    for name, value in found.items():
        assert_accurate(value, theirs[name], exact[name], name)
    # The same bits again, without the bias's.
    again = [call.empty(found["dx"]), call.empty(found["dw"])]
    run("conv_backward", call.params, call.dy, call.x, call.w, *again, None, backend=backend)
    assert torch.equal(again[0], found["dx"])
    assert torch.equal(again[1], found["dw"])


@backends
@every({"float32", "tf32", "bfloat16"})
def test_repeatable(
    kernel: Any, case: Conv, dtype: torch.dtype, tf32: bool, channels_last: bool, backend: str
) -> None:
    """Equal bit for bit in every run (the emulation runs threads in another order each time)."""
    call = make(case, dtype, tf32, channels_last, kernel, device_of(backend))
    first, again = results(call, kernel, backend), results(call, kernel, backend)
    assert all(torch.equal(first[name], again[name]) for name in first)


@backends
@every({"bfloat16"}, cases={kernel: some[:1] for kernel, some in FAMILIES.items()})
def test_unaligned(
    kernel: Any, case: Conv, dtype: torch.dtype, tf32: bool, channels_last: bool, backend: str
) -> None:
    """Tensors that begin one element beyond 16 bytes: no vectors, and the same result."""

    def shifted(t: Tensor) -> Tensor:
        memory = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
        return memory[1:].as_strided(t.shape, t.stride()).copy_(t)

    call = make(case, dtype, tf32, channels_last, kernel, device_of(backend))
    off = call._replace(x=shifted(call.x), w=shifted(call.w), b=shifted(call.b), dy=shifted(call.dy))
    assert off.x.data_ptr() % 16 == 2
    found, wanted = results(off, kernel, backend), results(call, kernel, backend)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-2, atol=1e-2)


@backends
@every({"float32", "bfloat16"}, cases={kernel: [EDGES] for kernel in (K.direct, K.stem, K.gemm)})
def test_nan(
    kernel: Any, case: Conv, dtype: torch.dtype, tf32: bool, channels_last: bool, backend: str
) -> None:
    """A NaN reaches what it is multiplied for and nothing else, although tiles end elsewhere than y does."""
    call = make(case, dtype, tf32, channels_last, kernel, device_of(backend))
    call.x[:, :, -1] = call.x[:, :, :, -1] = float("nan")
    call.x[0, 1, 5, 6] = float("nan")
    found = results(call, kernel, backend)
    exact = reference(case, call, torch.float64)
    assert exact["y"].isnan().any() and not exact["y"].isnan().all()
    for name, value in found.items():
        # Not torch's own: in bfloat16 it lets the NaN into windows beside.
        assert_accurate(value, exact[name].to(dtype), exact[name], name)


@backends
@every({"float32"}, passes="dw", cases={kernel: FAMILIES[kernel][:1] for kernel in FAMILIES})
def test_infinite_bias_grad(
    kernel: Any, case: Conv, dtype: torch.dtype, tf32: bool, channels_last: bool, backend: str
) -> None:
    """An infinity in dy makes its channel's db infinite, not NaN."""
    call = make(case, dtype, tf32, channels_last, kernel, device_of(backend))
    call.dy[0, 1, 0, 0] = float("inf")
    db = results(call, kernel, backend, ("dw",))["db"]
    assert db[1].isposinf() and db[0].isfinite() and db[2:].isfinite().all()


@backends
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@every_layout
def test_toeplitz_keeps_what_is_not_finite_where_it_is(channels_last: bool, bad: float, backend: str) -> None:
    """The band's zeros do not meet it: results whose windows do not have it are as without it."""
    case = Conv(1, 8, 8, (24, 30), (9, 9), "", padding=(4, 4), groups=8)
    call = make(case, torch.bfloat16, False, channels_last, K.toeplitz, device_of(backend))
    call.w.abs_().add_(0.1)
    before = results(call, K.toeplitz, backend, ("y", "dx"))
    call.x[0, 3, 10, 12] = call.dy[0, 3, 10, 12] = bad
    after = results(call, K.toeplitz, backend, ("y", "dx"))
    inside = torch.zeros(24, 30, dtype=torch.bool, device=call.x.device)
    inside[6:15, 8:17] = True
    for name in ("y", "dx"):
        assert not after[name][0, 3][inside].isfinite().any()
        assert after[name][0, 3][~inside].isfinite().all()
        others = [c for c in range(8) if c != 3]
        assert torch.equal(after[name][0, others].isfinite(), torch.ones_like(before[name][0, others]).bool())
        torch.testing.assert_close(after[name][0, others], before[name][0, others], rtol=0.02, atol=0.05)


@backends
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@every_layout
def test_toeplitz_weight_grad_keeps_what_is_not_finite_where_it_is(
    channels_last: bool, bad: float, backend: str
) -> None:
    """Zeros beyond dy's last column do not meet what x has there."""
    case = Conv(1, 8, 8, (24, 30), (9, 9), "", padding=(4, 4), groups=8, splits=1)
    call = make(case, torch.bfloat16, False, channels_last, K.toeplitz, device_of(backend))
    call.dy.abs_().add_(0.1)
    before = results(call, K.toeplitz, backend, ("dw",))["dw"]
    call.x[0, 3, 10, 29] = bad
    after = results(call, K.toeplitz, backend, ("dw",))["dw"]
    assert not after[3, 0, :, 4:].isfinite().any()
    others = [c for c in range(8) if c != 3]
    for mine, theirs in ((after[3, 0, :, :4], before[3, 0, :, :4]), (after[others], before[others])):
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.1)


@backends
def test_hopper_tails(backend: str) -> None:
    """The last step of a tap ends beyond C: zeros there do not meet the next tap's weights."""
    case = Conv(1, 72, 8, (6, 6), (1, 3), "a tail of channels")
    call = make(case, torch.bfloat16, False, True, K.hopper, device_of(backend))
    call.x.abs_().add_(1)
    call.w[0, :, 0, 1] = float("inf")
    y = results(call, K.hopper, backend)["y"]
    assert y[:, 0].isposinf().all() and y[:, 1:].isfinite().all()


@backends
@every_layout
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((2, 16, 8, 8), "whole vectors"),
        ((3, 5, 7, 3), "odd"),
        ((2, 3, 20, 20), "three channels"),
        ((40, 24, 1, 1), "one pixel"),
        ((1, 1, 33, 9), "one channel"),
        ((2, 70, 40, 30), "several blocks"),
        ((0, 3, 2, 2), "empty"),
    ],
)
def test_bias_grad(
    shape: tuple[int, ...], why: str, dtype: torch.dtype, channels_last: bool, backend: str
) -> None:
    n, k, h, w = shape
    params = direct_conv_params(n, k, (h, w), dtype, channels_last)
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device_of(backend), dtype)
    dy = dy.contiguous(memory_format=layout.CHANNELS_LAST if channels_last else layout.CONTIGUOUS)
    db = torch.full((k,), float("nan"), dtype=dtype, device=dy.device)
    run("conv_bias_grad", params, dy, db, backend=backend)
    assert_accurate(db, dy.sum((0, 2, 3)), dy.double().sum((0, 2, 3)), why)


def direct_conv_params(
    n: int, k: int, size: Pair, dtype: torch.dtype, channels_last: bool, padding: int = 0
) -> Any:
    """Of a 1x1 convolution with one input channel."""
    memory_format = layout.CHANNELS_LAST if channels_last else layout.CONTIGUOUS
    spec = ConvSpec((1, 1), (padding, padding), (1, 1), 1)
    out = (size[0] + 2 * padding, size[1] + 2 * padding)
    return conv_params(spec, (n, 1, *size), (k, 1, 1, 1), (n, k, *out), dtype, memory_format, memory_format)


@every_layout
@pytest.mark.parametrize("tf32", [False, True], ids=["strict", "tf32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stem_is_chosen(dtype: torch.dtype, tf32: bool, channels_last: bool) -> None:
    """For ResNet's and VGG's first layers, in both passes that have kernels of their own."""
    memory_format = layout.CHANNELS_LAST if channels_last else layout.CONTIGUOUS
    for kernel, stride in ((7, 2), (3, 1)):
        spec = ConvSpec((stride, stride), (kernel // 2, kernel // 2), (1, 1), 1)
        shapes = (64, 3, 224, 224), (64, 3, kernel, kernel), (64, 64, 224 // stride, 224 // stride)
        params = conv_params.__wrapped__(spec, *shapes, dtype, memory_format, memory_format)
        params.tf32 = tf32
        # Where three products stand for one, the model finds the GEMM as good.
        if dtype is torch.float32 and not tf32:
            continue
        for pass_ in (_C.ConvPass.forward, _C.ConvPass.weight_grad):
            assert _C.conv_plan(params, pass_, GPU).kernel == K.stem
        assert _C.conv_plan(params, _C.ConvPass.input_grad, GPU).kernel != K.stem


@backends
def test_too_large(backend: str) -> None:
    """The kernels count along an axis in 32 bits, and say so where that is not enough."""
    spec, high = ConvSpec((1, 1), (2**30, 0), (1, 1), 1), 1 + 2**31
    formats = layout.CONTIGUOUS, layout.CONTIGUOUS
    params = conv_params(spec, (1, 1, 1, 1), (1, 1, 1, 1), (1, 1, high, 1), torch.float32, *formats)
    x = torch.zeros(1, device=device_of(backend))
    with pytest.raises(ValueError, match="beyond what the kernels count in 32 bits"):
        run("conv", params, x, x, None, x, backend=backend)


@backends
@every_layout
@pytest.mark.parametrize("kernel", FAMILIES, ids=str)
def test_no_images(kernel: Any, channels_last: bool, backend: str) -> None:
    """Gradients of weights are zeros then, whatever the plan names; there is no grid of no blocks."""
    dtype = torch.float16 if kernel in (K.hopper, K.toeplitz) else torch.float32
    call = make(FAMILIES[kernel][0], dtype, False, channels_last, kernel, device_of(backend))
    call.params.n = 0
    if not _C.conv_kernel_serves(kernel, call.params, _C.ConvPass.weight_grad, GPU):
        pytest.skip("not a pass of this family")
    dw, db = call.empty(call.w), call.empty(call.b)
    run("conv_weight_grad", call.params, call.dy[:0], call.x[:0], dw, db, backend=backend)
    assert dw.count_nonzero() == 0 and db.count_nonzero() == 0


@backends
@pytest.mark.parametrize("op", ["conv", "conv_input_grad", "conv_weight_grad"])
def test_no_depth(op: str, backend: str) -> None:
    """Outputs of a second plane, which padding could explain: the kernels would read beside the first."""
    call = make(EDGES, torch.float32, False, False, K.direct, device_of(backend))
    call.params.out = (2, *call.params.out[1:])
    dy, x, w = torch.cat([call.dy, call.dy]), call.x.clone(), call.w.clone()
    tensors = {
        "conv": (x, w, None, dy),
        "conv_input_grad": (dy, w, None, x),
        "conv_weight_grad": (dy, x, w, None),
    }
    with pytest.raises(ValueError):
        run(op, call.params, *tensors[op], backend=backend)
