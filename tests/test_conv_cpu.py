"""The CPU's convolutions by their own ways: Winograd for 3 × 3, NCHW by way of channels_last, a few images at
a time. Each pass on every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fastops
from fastops import _C
from tests.tolerance import assert_accurate

ISAS = ["cpu", *(f"cpu-{isa}" for isa in _C.usable_isas()[:-1])]
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


class Conv(NamedTuple):
    n: int
    c: int
    k: int
    size: tuple[int, int]
    why: str
    options: Mapping[str, Any] = MappingProxyType({"padding": 1})
    kernel: int = 3
    passes: tuple[str, ...] = ("y", "dx", "dw", "db")

    def __str__(self) -> str:
        return self.why.replace(" ", "_")


CASES = [
    Conv(1, 32, 32, (16, 16), "whole tiles and vectors"),
    Conv(1, 48, 80, (15, 17), "odd rows and columns and channels of a panel and a part"),
    Conv(1, 33, 65, (14, 15), "one channel more than vectors hold"),
    Conv(9, 37, 35, (5, 5), "tiles of several images in a block"),
    Conv(2, 32, 40, (16, 14), "no padding", {}),
    Conv(1, 32, 32, (13, 15), "padding of two", {"padding": 2}),
    Conv(1, 32, 48, (3, 70), "one wide tile row", {"padding": (0, 1)}),
    Conv(1, 300, 32, (14, 14), "channels of more than one stretch of a sum", passes=("y", "dx")),
    Conv(2, 64, 96, (12, 13), "two groups", {"padding": 1, "groups": 2}),
    Conv(1, 32, 32, (20, 20), "one side padded more", {"padding": "same"}),
    Conv(1, 32, 48, (17, 18), "stride two", {"padding": 1, "stride": 2}),
    Conv(1, 24, 32, (19, 17), "dilation", {"padding": 2, "dilation": 2}, passes=("y", "dw")),
    Conv(2, 19, 21, (9, 7), "five by five", {"padding": 2}, 5),
    Conv(1, 130, 140, (7, 9), "one by one", {}, 1),
    Conv(2, 40, 40, (19, 21), "depthwise", {"padding": 1, "groups": 40}),
    Conv(
        2,
        72,
        72,
        (13, 14),
        "depthwise, five by five, stride two",
        {"padding": 2, "stride": 2, "groups": 72},
        5,
    ),
    Conv(1, 100, 100, (7, 7), "depthwise, a kernel as large as the image", {"padding": 3, "groups": 100}, 7),
    Conv(
        1, 24, 24, (11, 40), "depthwise, four by four, columns beyond tiles", {"padding": 1, "groups": 24}, 4
    ),
    Conv(1, 20, 20, (9, 12), "depthwise, dilation", {"padding": 2, "dilation": 2, "groups": 20}),
    Conv(
        1,
        33,
        33,
        (12, 12),
        "depthwise, a line of taps longer than tiles have",
        {"padding": 4, "groups": 33},
        9,
    ),
    Conv(1, 16, 16, (10, 9), "depthwise, stride three", {"padding": 1, "stride": 3, "groups": 16}),
    Conv(1, 17, 34, (10, 9), "two results a channel", {"padding": 1, "groups": 17}),
    Conv(1, 32, 32, (10, 9), "groups of four", {"padding": 1, "groups": 8}),
    Conv(1, 18, 18, (10, 9), "groups of three", {"padding": 1, "groups": 6}),
    Conv(2, 32, 32, (9, 21), "groups of two", {"padding": 1, "groups": 16}),
    Conv(1, 40, 40, (13, 18), "groups of eight, stride two", {"padding": 1, "stride": 2, "groups": 5}),
    Conv(1, 24, 24, (12, 11), "groups of four, five by five", {"padding": 2, "groups": 6}, 5),
    Conv(1, 64, 64, (7, 35), "groups of four, one by one", {"groups": 16}, 1),
    Conv(1, 16, 16, (9, 12), "groups of eight, dilation", {"padding": 2, "dilation": 2, "groups": 2}),
    Conv(2, 3, 32, (23, 71), "a first layer", {"padding": 3, "stride": 2}, 7),
    Conv(1, 4, 48, (5, 300), "a first layer, rows longer than a stretch", {"padding": 1}),
    Conv(3, 1, 16, (6, 40), "one channel, dilation", {"padding": 2, "dilation": 2}),
    Conv(1, 3, 80, (9, 140), "patches", {"stride": 4}, 4),
]


def operands(case: Conv, dtype: torch.dtype, layout: str) -> list[Tensor]:
    torch.manual_seed(0)
    groups = case.options.get("groups", 1)
    x = torch.randn(case.n, case.c, *case.size)
    w = torch.randn(case.k, case.c // groups, case.kernel, case.kernel) / (case.c * case.kernel**2) ** 0.5
    tensors = [t.to(dtype).contiguous(memory_format=LAYOUTS[layout]) for t in (x, w)]
    return [t.requires_grad_() for t in (*tensors, torch.randn(case.k).to(dtype))]


def passes(functions: Any, case: Conv, tensors: list[Tensor], seed: int = 1) -> dict[str, Tensor]:
    y = functions.conv2d(*tensors, **case.options)
    torch.manual_seed(seed)
    dy = torch.randn(y.shape).to(tensors[0].dtype)
    grads = torch.autograd.grad(y, tensors, torch.empty_like(y).copy_(dy))
    return dict(zip(("y", "dx", "dw", "db"), (y, *grads), strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case: Conv, dtype: torch.dtype, layout: str, isa: str) -> None:
    tensors = operands(case, dtype, layout)
    with fastops.backend(isa):
        ours = passes(fastops.functional, case, tensors)
    theirs = passes(torch.nn.functional, case, tensors)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    y = torch.nn.functional.conv2d(*wide, **case.options)
    torch.manual_seed(1)
    dy = torch.randn(y.shape).to(dtype).double()
    exact = dict(zip(("y", "dx", "dw", "db"), (y, *torch.autograd.grad(y, wide, dy)), strict=True))
    for name in case.passes:
        assert_accurate(ours[name], theirs[name], exact[name], name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), 3e38])
def test_what_is_not_finite_stays_where_it_is(bad: float, layout: str, isa: str) -> None:
    """Infinities are not made NaN, nothing reaches a window that does not hold it, and in a weight it reaches
    its channel only; what the transforms alone would overflow does not."""
    case = CASES[0]
    for at in (0, 1):
        tensors = operands(case, torch.float32, layout)
        place = (0, 3, 5, 6) if at == 0 else (7, 3, 1, 1)
        with torch.no_grad():
            tensors[at][place] = bad
        with fastops.backend(isa):
            ours = passes(fastops.functional, case, tensors)
        theirs = passes(torch.nn.functional, case, [t.detach().double().requires_grad_() for t in tensors])
        for name, value in ours.items():
            wanted = theirs[name].float()
            assert torch.equal(value.isnan(), wanted.isnan()), name
            assert torch.equal(value.isposinf(), wanted.isposinf()), name
            assert torch.equal(value.isneginf(), wanted.isneginf()), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_neighbours_do_not_matter(layout: str) -> None:
    """An image's results are the same bits whatever else is in the batch, infinities too."""
    for case in CASES:
        x, w, b = (t.detach() for t in operands(case._replace(n=4), torch.float32, layout))
        one = fastops.functional.conv2d(x[2:3].clone(memory_format=LAYOUTS[layout]), w, b, **case.options)
        x[1] = float("inf")
        x[3] *= 1e30
        if one[0, 0].numel() >= 192:  # of fewer positions a batch is served by other kernels than an image
            assert torch.equal(fastops.functional.conv2d(x, w, b, **case.options)[2], one[0]), case


def test_threads_do_not_matter(threads: None) -> None:
    for case in CASES:
        tensors = operands(case, torch.float32, "NCHW")
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(passes(fastops.functional, case, tensors))
        assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other), case


def test_a_few_images_at_a_time() -> None:
    """NCHW is turned over in pieces of 16 MB: the last one is of fewer images."""
    case = Conv(5, 64, 64, (120, 121), "")
    tensors = operands(case, torch.float32, "NCHW")
    with torch.no_grad():
        ours, theirs = (F.conv2d(*tensors, padding=1) for F in (fastops.functional, torch.nn.functional))
        last = fastops.functional.conv2d(tensors[0][4:], *tensors[1:], padding=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours[4:], last)
