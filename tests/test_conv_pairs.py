"""Convolution on the CPU in bfloat16: what the products of pairs (csrc/cpu/words.h) have edges at."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import fastops.functional as F
from fastops.backends import native
from tests.tolerance import assert_accurate

Pair = tuple[int, int]


class Conv(NamedTuple):
    n: int
    c: int
    k: int
    size: Pair
    kernel: Pair
    why: str
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        return self.why.replace(" ", "_")


CASES = [
    Conv(2, 3, 5, (6, 7), (3, 3), "odd depth", padding=(1, 1)),
    Conv(1, 1, 1, (1, 1), (1, 1), "one of everything"),
    Conv(1, 20, 17, (1, 1), (1, 1), "one position"),
    Conv(1, 33, 18, (1, 1), (3, 3), "one position in padding", padding=(1, 1)),
    Conv(2, 9, 13, (6, 5), (3, 3), "few odd channels", padding=(1, 1)),
    Conv(3, 17, 33, (7, 7), (3, 3), "odd channels", padding=(1, 1)),
    Conv(1, 18, 70, (9, 11), (3, 3), "even channels past a panel", padding=(1, 1)),
    Conv(1, 301, 9, (5, 6), (3, 3), "odd channels of one tap a block", padding=(1, 1)),
    Conv(1, 601, 7, (6, 5), (3, 1), "odd channels in several blocks"),
    Conv(1, 2100, 6, (3, 35), (1, 1), "even channels in several blocks"),
    Conv(1, 6, 2100, (3, 35), (1, 1), "even result channels in several blocks"),
    Conv(1, 24, 34, (12, 13), (7, 7), "more taps than a block", padding=(3, 3)),
    Conv(1, 4, 6, (40, 41), (13, 12), "many taps of few channels", padding=(6, 6)),
    Conv(1, 22, 26, (7, 7), (3, 3), "odd groups", padding=(1, 1), groups=2),
    Conv(2, 48, 72, (7, 9), (3, 3), "even groups", padding=(1, 1), groups=2),
    Conv(1, 32, 48, (13, 11), (3, 3), "stride 2", stride=(2, 2), padding=(1, 1)),
    Conv(1, 3, 64, (41, 44), (7, 7), "stem", stride=(2, 2), padding=(3, 3)),
    Conv(1, 34, 16, (13, 38), (2, 2), "stride beyond the kernel", stride=(3, 3)),
    Conv(2, 32, 64, (30, 28), (1, 1), "1x1 stride 2", stride=(2, 2)),
    Conv(2, 64, 96, (20, 21), (1, 1), "1x1"),
    Conv(1, 16, 20, (15, 14), (3, 3), "dilation", padding=(2, 3), dilation=(2, 3)),
    Conv(1, 5, 20, (15, 14), (3, 3), "dilation of few channels", padding=(2, 2), dilation=(2, 2)),
    Conv(1, 20, 24, (17, 16), (3, 2), "stride and dilation", (4, 4), (3, 3), (2, 2)),
    Conv(3, 130, 140, (7, 7), (3, 3), "few positions many channels", padding=(1, 1)),
    Conv(1, 768, 9, (23, 25), (3, 3), "gradient of the weight in blocks of positions", padding=(1, 1)),
    Conv(3, 32, 24, (19, 19), (3, 3), "gradient of the weight in parts", padding=(1, 1)),
    Conv(1, 16, 520, (14, 15), (3, 3), "result channels in parts", padding=(1, 1)),
]

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def tensors(case: Conv, x_format: torch.memory_format, w_format: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(case.n, case.c, *case.size, generator=generator).bfloat16()
    w = torch.randn(case.k, case.c // case.groups, *case.kernel, generator=generator).bfloat16()
    b = torch.randn(case.k, generator=generator).bfloat16()
    return [
        x.contiguous(memory_format=x_format).requires_grad_(),
        w.contiguous(memory_format=w_format).requires_grad_(),
        b,
    ]


def results(conv: object, case: Conv, x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    """y, dx and dw."""
    assert callable(conv)
    y = conv(x, w, b, case.stride, case.padding, case.dilation, case.groups)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(6)).bfloat16().to(y.dtype)
    memory_format = torch.channels_last if not x.is_contiguous() else torch.contiguous_format
    return [y.detach(), *torch.autograd.grad(y, (x, w), dy.contiguous(memory_format=memory_format))]


@pytest.fixture(autouse=True)
def scratch_of_nans() -> None:
    """Nothing may be read from scratch memory that has not been written there."""
    native._workspace(32 << 20).fill_(255)


@pytest.mark.parametrize("w_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("x_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bfloat16(case: Conv, x_format: torch.memory_format, w_format: torch.memory_format) -> None:
    mine = tensors(case, x_format, w_format)
    exact = [t.detach().double() for t in mine]
    for t in exact[:2]:
        t.requires_grad_()
    found = results(F.conv2d, case, *mine)
    theirs = results(torch.nn.functional.conv2d, case, *tensors(case, x_format, w_format))
    reference = results(torch.nn.functional.conv2d, case, *exact)
    for name, *values in zip(("y", "dx", "dw"), found, theirs, reference, strict=True):
        assert_accurate(*values, name)

    # The same bits on any number of threads, whatever is in the scratch memory.
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            native._workspace(32 << 20).fill_(count)
            for before, now in zip(found, results(F.conv2d, case, *mine), strict=True):
                assert torch.equal(before, now)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("x_format", FORMATS.values(), ids=FORMATS)
def test_what_is_not_finite_stays_where_it_is(x_format: torch.memory_format) -> None:
    """The second element of a word that has one alone is not multiplied with what lies beside."""
    case = Conv(1, 3, 5, (5, 6), (1, 3), "")
    x, w, b = tensors(case, x_format, x_format)
    with torch.no_grad():
        w[1, 0, 0, 0] = float("inf")
        x[0, :, 3, :] = float("nan")
    y = results(F.conv2d, case, x, w, b)[0]
    assert y[0, [0, 2, 3, 4]][:, [0, 1, 2, 4]].isfinite().all()
    assert y[0, 1, 0].isinf().all()
    assert y[0, :, 3].isnan().all()
