"""Tensors of more than 2³¹ elements, and the edge: 2³¹ − 1, 2³¹, 2³¹ + 1.

Cases of the CUDA kernels are those of tests/test_large_tensors.py: in the emulation on address space that
nobody has written, where of a large grid the last block runs; on a GPU with 40 GiB free as they are. A case
on the CPU is one call, of bf16 (interpolation of uint8, too), whose largest tensor is at the edge: its values
near both ends and near 2³¹ are random, and compared with torch's on a piece of the tensor; all others are
zero and must stay so. Few outputs: windows far apart, which reach the last element. Every output, with
gradients: in the long form, where there is the memory. Those of adaptive pooling, unpooling, more of
interpolation, weights of convolution and statistics are in large_few.py, large_local.py and
large_statistics.py.

Where it ends: the emulation's tensors have one size, beyond 2³¹; bicubic resizing is not among them, whose
two passes are not seen in one block, nor the convolutions for Hopper and by Toeplitz matrices. Triton's
kernels have no case here (tests/test_triton.py asks when their indices are wide, and runs wide ones on small
tensors). Adaptive pooling and unpooling on the CPU are beyond 2³¹, not at the edges. A window of max pooling
may span 2³⁰ elements of its plane, and an error says so beyond; so a row may not have more. (2³¹ − 1 is
prime, a tensor of so many elements one row.) Interpolation makes axes of up to 2³¹ − 1: its cases have two
rows, and 2³¹ − 4, 2³¹ and 2³¹ + 4 outputs; bilinear ones 64 rows, and 2³¹ ∓ 128 outputs, since the CPU's
table has entries for each column.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastops
import fastops.functional as G
from fastops import backends as all_backends
from tests.reliability import large_few, large_local, large_statistics
from tests.reliability.calls import backends, on_cpu_kernels
from tests.reliability.edge import EDGE, EDGES, need, nonzeros, sparse
from tests.reliability.tally import Skip, Tally
from tests.test_large_tensors import values

FEW, GRADIENTS, EVERY = PARTS = "few outputs", "gradients", "every output"
QUICK = (FEW,)
PIECE = 64  # elements that are compared, at each place
TESTS = Path(__file__).resolve().parents[1] / "test_large_tensors.py"


# ---- the CUDA kernels ---------------------------------------------------------------------------


class Collected:
    """A plugin of pytest: what became of each test."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], Tally] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        function, parameters = report.nodeid.split("::")[1].split("[")
        backend = "cuda-emulated" if "emulated" in parameters else "cuda"
        what = function.removeprefix("test_").replace("_", " ")
        line = self.lines.setdefault(
            (what, backend), Tally(what, "more than 2³¹ elements", backend, "bfloat16")
        )
        with line.case(parameters.rstrip("]")):
            if report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                raise Skip(reason.removeprefix("Skipped: "))
            assert report.passed, str(report.longrepr)[-300:]


def of_cuda() -> Iterator[Tally]:
    collected = Collected()
    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main([str(TESTS), "-q", "-p", "no:cacheprovider"], plugins=[collected])
    yield from collected.lines.values()
    line = Tally("the tests", "were collected and run", "cuda")
    with line.case(TESTS.name):
        assert status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and collected.lines, status
    yield line


# ---- the CPU's ----------------------------------------------------------------------------------


def windows_over(length: int) -> int:
    """How many windows, two at least, begin at equal distances, the first at 0 and the last at `length`."""
    return 1 + next((d for d in range(2, math.isqrt(length) + 1) if length % d == 0), 1)


def rows_of(op: str, count: int) -> int:
    """Into how many rows elements are laid."""
    if not op.startswith("max_pool2d") or count > EDGE + 1:
        return 1
    if count not in (EDGE, EDGE + 1):
        raise Skip("2³¹ − 1 elements are one row, too long for max pooling")
    return 4 if count == EDGE else 3


class Far(NamedTuple):
    """Few windows, as far apart as they can be if the last is to end with the last element."""

    op: str
    taps: int
    call: Callable[[Any, Tensor, int], Any]  # given the step; (1, outputs) pairs of windows and results


FAR = (
    Far("avg_pool2d", 2, lambda f, x, step: f.avg_pool2d(x, (1, 2), (1, step))),
    Far("max_pool2d", 2, lambda f, x, step: f.max_pool2d(x, (1, 2), (1, step))),
    Far(
        "max_pool2d with indices",
        2,
        lambda f, x, step: f.max_pool2d(x, (1, 2), (1, step), return_indices=True),
    ),
    Far("conv2d", 3, lambda f, x, step: f.conv2d(x, torch.ones(1, 1, 1, 3, dtype=x.dtype), stride=(1, step))),
)


def few_outputs(far: Far, count: int, backend: str) -> None:
    rows = rows_of(far.op, count)
    width = count // rows
    x = sparse(count, torch.bfloat16).view(1, 1, rows, width)
    windows = windows_over(width - far.taps)
    step = (width - far.taps) // (windows - 1)
    chosen = sorted({0, 1, windows // 2, windows - 1})
    for k, window in enumerate(chosen):
        piece = x[0, 0, :, window * step : window * step + far.taps]
        piece.copy_(values(piece.numel() + k, "cpu")[k:].view(piece.shape))
    with fastops.backend(backend):
        result = far.call(G, x, step)
    y, indices = result if isinstance(result, tuple) else (result, None)
    assert y.shape == (1, 1, rows, windows)
    for window in chosen:
        begin = window * step
        expected = far.call(F, x[..., begin : begin + far.taps], 1)
        if indices is not None:
            expected, at = expected
            row = torch.arange(rows)[:, None]
            assert torch.equal(indices[0, 0, :, window, None], at[0, 0] % far.taps + begin + row * width), (
                "index"
            )
        assert torch.equal(y[..., window], expected[..., 0]), f"window {window}"
    others = torch.ones(windows, dtype=torch.bool)
    others[chosen] = False
    assert not y[..., others].any(), "of zeros came something else"


class Full(NamedTuple):
    """Every output. `ratio` is outputs ÷ inputs; of the larger of both there are as many as at the edge."""

    op: str
    call: Callable[[Any, Tensor], Tensor]
    ratio: float = 1.0
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
    gradient: bool = True
    channels: bool = True  # whether eight of them, too
    gibibytes: float = 9  # of results that are there at once


def _statistics(f: Any, x: Tensor) -> Tensor:
    """A mean of 0, so that zeros stay zeros."""
    mean = torch.zeros(x.shape[1], device=x.device)
    return f.batch_norm(x, mean, mean + 4)


def _weight(x: Tensor) -> Tensor:
    """1 × 3, depthwise where there are several channels."""
    return (
        torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype, device=x.device).expand(x.shape[1], 1, 1, 3).contiguous()
    )


FULL = (
    Full("avg_pool2d", lambda f, x: f.avg_pool2d(x, (1, 2)), 0.5),
    Full("max_pool2d", lambda f, x: f.max_pool2d(x, (1, 2)), 0.5, gibibytes=16),
    # Not with eight channels: a row of 2²⁸ pixels in fp32, padded to lanes, is 32 GiB. See large_local.py.
    Full("conv2d", lambda f, x: f.conv2d(x, _weight(x), padding=(0, 1), groups=x.shape[1]), channels=False),
    Full(
        "conv_transpose2d",
        lambda f, x: f.conv_transpose2d(x, _weight(x), padding=(0, 1), groups=x.shape[1]),
        channels=False,
    ),
    Full("batch_norm, evaluation", _statistics),
    Full("interpolate nearest", lambda f, x: f.interpolate(x, scale_factor=(1, 2)), 2),
    Full("interpolate bilinear", lambda f, x: f.interpolate(x, scale_factor=(1, 2), mode="bilinear"), 2),
    Full(
        "interpolate bilinear",
        lambda f, x: f.interpolate(x, scale_factor=(1, 2), mode="bilinear"),
        2,
        (torch.uint8,),
        gradient=False,
    ),
)


def pieces(width: int, channels: int) -> list[tuple[int, int]]:
    """Columns at both ends, and around those where elements 2³⁰ and 2³¹ are; they begin with even ones."""
    starts = {0, 2**30 // channels - PIECE // 2, 2**31 // channels - PIECE // 2, width - PIECE}
    return [(a - a % 2, min(a - a % 2 + PIECE + 2, width)) for a in sorted(starts) if 0 <= a <= width - PIECE]


def shape_of(full: Full, count: int, channels: int = 1) -> tuple[int, ...]:
    """Of x."""
    if full.ratio > 1:
        rows = 64 if "bilinear" in full.op else 2
        upwards = (2 * rows - 1) * (count > EDGE)
        return 1, channels, rows, (count + upwards) // (2 * rows * channels)
    rows = rows_of(full.op, count)
    return 1, channels, rows, count // (channels * rows)


def marked(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros, but for the pieces; channels_last where there are several channels."""
    _, c, rows, width = shape
    t = sparse(c * rows * width, dtype).view(1, rows, width, c).permute(0, 3, 1, 2)
    for k, (a, b) in enumerate(pieces(width, c)):
        piece = t[..., a:b]
        piece.copy_(values(piece.numel() + k, "cpu")[k:].view(piece.shape))
    return t


def compared(what: str, large: Tensor, source: Tensor, small: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A large result with what torch makes of each piece of the source; beside the pieces it is zero."""
    width, ratio = source.shape[3], large.shape[3] / source.shape[3]
    scale = 2 if ratio > 1.5 else 0.5 if ratio < 0.7 else 1
    nonzero = 0
    for a, b in pieces(width, source.shape[1]):
        wide = (max(a - 8, 0), min(b + 8, width))  # zeros beside it
        expected = small(source[..., wide[0] : wide[1]].contiguous(), large)
        begin = int(wide[0] * scale)
        found = large[..., begin : begin + expected.shape[3]]
        # At cut ends torch sees an edge where there is none: there all is zero.
        torch.testing.assert_close(
            found, expected, rtol=1e-2, atol=1e-2, msg=lambda m, a=a: f"{what}, {a}: {m}"
        )
        nonzero += int(found.count_nonzero())
    found_nonzero = nonzeros(large)
    assert found_nonzero == nonzero, f"{what}: {found_nonzero} values that are not zero, not {nonzero}"


def every_output(full: Full, count: int, channels: int, dtype: torch.dtype, backend: str) -> None:
    need(full.gibibytes * dtype.itemsize / 2)
    shape = shape_of(full, count, channels)
    x = marked(shape, dtype)
    with fastops.backend(backend), torch.no_grad():
        y = full.call(G, x)
    with torch.no_grad():
        compared("y", y, x, lambda piece, _: full.call(F, piece))
    del y
    if not full.gradient:
        return
    leaf = x.detach().requires_grad_()
    with fastops.backend(backend):
        y = full.call(G, leaf)
        dy = marked(tuple(y.shape), dtype)
        (dx,) = torch.autograd.grad(y, leaf, dy)
    del y
    if full.op == "max_pool2d":  # where maxima are depends on x: a piece of both
        for a, b in pieces(shape[3], channels)[:-1]:
            a, b = a + a % 4, b - b % 4
            piece = x[..., a:b].contiguous().requires_grad_()
            (expected,) = torch.autograd.grad(
                full.call(F, piece), piece, dy[..., a // 2 : b // 2].contiguous()
            )
            torch.testing.assert_close(dx[..., a:b], expected)
        return

    def gradient(piece: Tensor, _: Tensor) -> Tensor:
        zeros = torch.zeros(
            1, channels, piece.shape[2], int(piece.shape[3] / full.ratio), dtype=dtype, requires_grad=True
        )
        (found,) = torch.autograd.grad(full.call(F, zeros), zeros, piece)
        return found

    compared("dx", dx, dy, gradient)


def on_meta(line: Tally) -> None:
    """Shapes and strides without memory, and that params hold the sizes whole."""
    for count in EDGES:
        for full in FULL:
            with line.case(f"{full.op}, {count}"):
                shape = shape_of(full, count)
                ours, theirs = (
                    full.call(f, torch.empty(shape, dtype=torch.bfloat16, device="meta")) for f in (G, F)
                )
                assert ours.shape == theirs.shape and ours.stride() == theirs.stride()
                with all_backends.recorded() as recording, torch.no_grad():
                    full.call(G, sparse(math.prod(shape), torch.bfloat16).view(shape))
                assert recording.launches, "nothing was launched"
                for op, params, _ in recording.launches:
                    sizes = params.in_, params.out if hasattr(params, "out") else params.in_
                    assert shape[2:] in [s[1:] for s in sizes], f"{op}: {params!r}"


def few_outputs_of_all() -> Iterator[Tally]:
    for backend in filter(on_cpu_kernels, backends()):
        for far in FAR:
            line = Tally(far.op, "at the edge, few outputs", backend, "bfloat16")
            for count in EDGES:
                with line.case(f"{count} elements"):
                    few_outputs(far, count, backend)
            yield line
    yield from large_few.few_outputs()


def every_output_of_all() -> Iterator[Tally]:
    for full in FULL:
        for dtype in full.dtypes:
            line = Tally(full.op, "at the edge, every output", "cpu", str(dtype).removeprefix("torch."))
            for count, channels in (*((count, 1) for count in EDGES), *([(EDGE + 8, 8)] * full.channels)):
                with line.case(f"{count} elements, {channels} channels"):
                    every_output(full, count, channels, dtype, "cpu")
            yield line


def run(quick: bool, part: str) -> Iterator[Tally]:
    torch.set_num_threads(1)
    if part == FEW:
        yield from of_cuda()
        line = Tally("every op", "sizes and params at the edge", "meta")
        on_meta(line)
        yield line
        yield from few_outputs_of_all()
    elif part == GRADIENTS:
        for cases in (large_few, large_local, large_statistics):
            yield from cases.every_output()
    else:
        yield from every_output_of_all()
