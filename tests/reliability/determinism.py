"""Results that are equal bit for bit, forward and every gradient, whatever is not the input.

A case is one call of the tests' tables, forward and backward, compared with the first such call, in fp32 and
in bf16, in either layout; in the emulation and in the interpreter, six of an op's cases. Goals:

- the same call again, a hundred times (in the interpreter ten), in memory that holds NaNs, and bytes of 0xFF
  in the kernels' scratch memory, before it;
- 1, 2, 3 and 5 threads, which small cases use, too;
- in the emulation of CUDA: threads of a block in other orders, asynchronous copies early and late;
- tensors that begin 1 to 7 elements into their memory;
- for what is computed for each image by itself (y and the gradient of x; not batch norm in training): another
  place in the batch, and other neighbours, NaN and infinities among them.

Where it ends: an image alone may be computed by another way than in a batch, with other roundings, since the
way depends on the shape. How often it is so in the tables, the last lines count; that is no failure.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import fastops
import fastops.functional as G
from fastops import _C
from fastops.backends import native
from tests import interpreter, simt
from tests.cases import Case
from tests.conftest import SLOW, device_of
from tests.reliability.calls import (
    affordable,
    backends,
    by_label,
    name,
    on_cpu_kernels,
    same_bits,
    some,
)
from tests.reliability.report import NOT_ASKED
from tests.reliability.tally import Skip, Tally

INTERPRETED = True

Results = list[Tensor]
DTYPES = (torch.float32, torch.bfloat16)
BATCH = 5


def results(case: Case, arguments: tuple[Any, ...], dy: Tensor | None = None) -> Results:
    """Outputs and gradients, of the very tensors that are given."""
    wrt = case.differentiable(arguments)
    leaves = [arguments[i].requires_grad_() for i in wrt]
    result = case.call(G, *arguments)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    y = outputs[0]
    if not y.requires_grad:
        return [o.detach() for o in outputs]
    if dy is None:
        dy = upstream(y)
    grads = torch.autograd.grad(y, leaves, dy)
    return [*(o.detach() for o in outputs), *grads]


def upstream(y: Tensor) -> Tensor:
    """The same dy for the same shape."""
    values = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return torch.empty_like(y, requires_grad=False).copy_(values)


def assert_same(found: Results, expected: Results) -> None:
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert same_bits(a, b), f"result {i} differs, by at most {(a.double() - b.double()).abs().max():.3g}"


@contextmanager
def hostile_memory() -> Iterator[None]:
    """torch.empty gives NaNs, and what scratch memory fastops has kept holds bytes of 0xFF."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    kept: Tensor | None = getattr(native._scratch, "tensor", None)
    if kept is not None:
        kept.fill_(0xFF)
    try:
        assert torch.empty(3).isnan().all(), "torch did not fill memory"
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    _C.set_min_work_per_thread(1)
    try:
        yield
    finally:
        _C.set_min_work_per_thread(16384)
        torch.set_num_threads(before)


@contextmanager
def schedule(order: str, copies: str, seed: int) -> Iterator[None]:
    simt.load().configure(order, copies, seed)
    try:
        yield
    finally:
        simt.configure(simt.load())


def shifted(t: Any, by: int) -> Any:
    """The same tensor, which begins so many elements into its memory."""
    if not isinstance(t, Tensor):
        return t
    memory = torch.empty(t.numel() + by, dtype=t.dtype, device=t.device)
    return torch.as_strided(memory, t.shape, t.stride(), by).copy_(t)


class Asked:
    """A case at a dtype in a layout on a backend; each call has fresh arguments."""

    def __init__(self, case: Case, dtype: torch.dtype, channels_last: bool, backend: str) -> None:
        self.case, self.dtype, self.channels_last, self.backend = case, dtype, channels_last, backend
        self.expected: Results = self.call()

    def __str__(self) -> str:
        return f"{self.case} {name(self.dtype)}{' channels_last' if self.channels_last else ''}"

    def arguments(self) -> tuple[Any, ...]:
        return self.case.arguments(self.dtype, self.channels_last, device_of(self.backend))

    def call(self) -> Results:
        return results(self.case, self.arguments())


def again(asked: Asked, quick: bool) -> Iterator[str]:
    """Each yields a name when it has passed; what fails raises."""
    for turn in range(asked_repeats(asked, quick)):
        if turn % 2 == 0:
            with hostile_memory():
                found = asked.call()
        else:
            found = asked.call()
        assert_same(found, asked.expected)
        yield f"time {turn + 2}"


def asked_repeats(asked: Asked, quick: bool) -> int:
    if asked.backend == interpreter.NAME:
        return 1 if quick else 10
    return (2 if asked.backend == simt.NAME else 10) if quick else 100


def on_threads(asked: Asked, quick: bool) -> Iterator[str]:
    for count in (1, 2, 3, 5):
        with threads(count):
            found = asked.call()
        assert_same(found, asked.expected)
        yield f"{count} threads"


def in_other_orders(asked: Asked, quick: bool) -> Iterator[str]:
    orders = itertools.product(("forward", "reverse", "random"), ("lazy", "eager", "random"), range(1, 4))
    # What is not random has one seed.
    orders = [o for o in orders if "random" in o[:2] or o[2] == 1]
    for one in [orders[0], orders[-1]] if quick else orders:
        with schedule(*one):
            found = asked.call()
        assert_same(found, asked.expected)
        yield " ".join(map(str, one))


def elsewhere_in_memory(asked: Asked, quick: bool) -> Iterator[str]:
    few = (1,) if asked.backend == interpreter.NAME else (1, 3)
    for by in few if quick else range(1, 8):
        arguments = tuple(shifted(a, by) for a in asked.arguments())
        y = asked.expected[0]
        found = results(asked.case, arguments, shifted(upstream(y), by))
        assert_same(found, asked.expected)
        yield f"{by} elements further"


PROPERTIES: dict[str, Callable[[Asked, bool], Iterator[str]]] = {
    "again": again,
    "1, 2, 3, 5 threads": on_threads,
    "other schedules": in_other_orders,
    "other addresses": elsewhere_in_memory,
}


# ---- batches ------------------------------------------------------------------------------------


def batched(case: Case, count: int) -> Case | None:
    """The case with so many images; None where images are not computed each by itself."""
    first = case.shapes[0]
    if case.kwargs.get("training") or (case.op != "batch_norm" and len(first) != 4):
        return None
    residual = first if case.composed else None  # its place depends on what parameters there are
    shapes = tuple((count, *s[1:]) if i == 0 or s == residual else s for i, s in enumerate(case.shapes))
    return dataclasses.replace(case, shapes=shapes)


def per_image(case: Case, arguments: tuple[Any, ...]) -> list[int]:
    """The arguments that have an image for each of the batch."""
    tensors = [i for i, a in enumerate(arguments) if isinstance(a, Tensor)]
    return [i for i in tensors if i in (0, 5) or case.op == "max_unpool2d"]


class Batch:
    """A batch of a case, and its results of each image: y, indices, gradients of x and of a residual."""

    def __init__(self, case: Case, dtype: torch.dtype, channels_last: bool, backend: str) -> None:
        made = batched(case, BATCH)
        if made is None:
            raise Skip("images are not computed each by itself")
        self.case, self.dtype, self.channels_last, self.backend = made, dtype, channels_last, backend
        self.arguments = made.arguments(dtype, channels_last, device_of(backend))
        self.with_batch = per_image(made, self.arguments)
        wrt = made.differentiable(self.arguments)
        # dy is an argument more, with an image for each of the batch.
        self.y = results(made, self.fresh(self.arguments))
        self.outputs = len(self.y) - (len(wrt) if self.y[0].dtype.is_floating_point and wrt else 0)
        self.kept = [*range(self.outputs)]
        self.kept += [self.outputs + k for k, i in enumerate(wrt) if i in self.with_batch]
        self.dy = upstream(self.y[0])
        self.expected = self.of(self.arguments, self.dy)

    def fresh(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            a.detach().clone(memory_format=torch.preserve_format) if isinstance(a, Tensor) else a
            for a in arguments
        )

    def of(self, arguments: tuple[Any, ...], dy: Tensor) -> Results:
        found = results(self.case, self.fresh(arguments), dy)
        return [found[i] for i in self.kept if i < len(found)]

    def changed(self, change: Callable[[Tensor], Tensor]) -> tuple[tuple[Any, ...], Tensor]:
        """What has an image for each of the batch, changed along it."""

        def same_layout(t: Tensor) -> Tensor:
            new = change(t)
            nhwc = self.channels_last and t.dim() == 4
            return new.contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)

        arguments = tuple(same_layout(a) if i in self.with_batch else a for i, a in enumerate(self.arguments))
        return arguments, same_layout(self.dy)


def other_places(batch: Batch, quick: bool) -> Iterator[str]:
    for by in (2,) if quick and batch.backend == interpreter.NAME else range(1, BATCH):
        found = batch.of(*batch.changed(lambda t, by=by: t.roll(by, 0)))
        assert_same(found, [e.roll(by, 0) for e in batch.expected])
        yield f"{by} further"


def other_neighbours(batch: Batch, quick: bool) -> Iterator[str]:
    """Image 2 stays."""
    values = float("nan"), float("inf"), 1.0
    for value in values[:1] if quick and batch.backend == interpreter.NAME else values:

        def change(t: Tensor, value: float = value) -> Tensor:
            new = t.clone() if not t.dtype.is_floating_point else t * 3 + 1 if value == 1 else t * 0 + value
            new[2] = t[2]
            return new

        found = batch.of(*batch.changed(change))
        assert_same([f[2] for f in found], [e[2] for e in batch.expected])
        yield f"beside {value}"


def alone(batch: Batch) -> bool:
    """Whether an image alone has the bits that it has in the batch."""
    found = batch.of(*batch.changed(lambda t: t[2:3]))
    return all(same_bits(f[0], e[2]) for f, e in zip(found, batch.expected, strict=True))


def of_batches(op: str, chosen: list[Case], backend: str, quick: bool) -> Iterator[Tally]:
    places = Tally(op, "other places in the batch", backend)
    neighbours = Tally(op, "other neighbours in the batch", backend)
    single = Tally(op, f"an image alone: {NOT_ASKED}", backend)
    different = 0
    for case, dtype, channels_last in of(chosen, quick):
        where = f"{case} {name(dtype)}{' channels_last' if channels_last else ''}"
        if batched(case, BATCH) is None:
            continue
        batch: Batch | None = None
        with single.case(where):
            batch = Batch(case, dtype, channels_last, backend)
            different += not alone(batch)
        if batch is None:
            continue
        for line, ask in ((places, other_places), (neighbours, other_neighbours)):
            count(line, where, ask(batch, quick))
    single.note = f"other bits in {different:,} of {single.cases:,}"
    yield from (line for line in (places, neighbours, single) if line.cases)


# Convolutions as networks have them: (channels, size), with what else they may be.
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))


def of_networks(backend: str, quick: bool) -> Tally:
    """How often an image of a network's convolution alone has other bits than in its batch."""
    line = Tally("conv2d of networks", f"an image alone: {NOT_ASKED}", backend)
    found: list[str] = []
    for (channels, size), kernel, stride in itertools.product(STAGES, (1, 3), (1, 2)):
        shapes = (1, channels, size, size), (channels, channels, kernel, kernel)
        case = Case("conv2d", shapes, dict(stride=stride, padding=kernel // 2), "a stage of ResNet")
        for dtype, channels_last in (
            [(torch.float32, True)] if quick else itertools.product(DTYPES, (False, True))
        ):
            with line.case(str(case)):
                if not alone(Batch(case, dtype, channels_last, backend)):
                    found.append(f"{channels} channels of {size}², {kernel} × {kernel}, stride {stride}")
    line.note = f"other bits in {len(found)} of {line.cases}"
    if found:
        line.note += f": {', '.join(sorted(set(found)))}"
    return line


# ---- lines --------------------------------------------------------------------------------------


def of(chosen: list[Case], quick: bool) -> Iterator[tuple[Case, torch.dtype, bool]]:
    """The cases, at each dtype in each layout; quick: in one of the four ways, in turns."""
    ways = list(itertools.product(DTYPES, (False, True)))
    for i, case in enumerate(chosen):
        for dtype, channels_last in [ways[(i * 3 + 1) % 4]] if quick else ways:
            if dtype in case.dtypes:
                yield case, dtype, channels_last


def count(line: Tally, where: str, steps: Iterator[str]) -> None:
    """Each step is a case; one that raises is the last."""
    going = True
    while going:
        with line.case(where):
            going = next(steps, None) is not None
    line.cases -= 1  # the end of the steps


def served(asked: str, backend: str) -> bool:
    return {
        "1, 2, 3, 5 threads": on_cpu_kernels(backend),
        "other schedules": backend == simt.NAME,
    }.get(asked, True)


def run(quick: bool) -> Iterator[Tally]:
    torch.set_num_threads(1)
    for (op, cases), backend in itertools.product(by_label().items(), backends()):
        chosen = affordable(cases, backend, quick)
        if quick:
            large = [c for c in chosen if c.large] if backend == "cpu" else []
            chosen = [*some([c for c in chosen if not c.large], 4), *large]
        elif backend in SLOW:
            chosen = some(chosen, 6)  # dozens of times each
        with fastops.backend(backend):
            lines = {asked: Tally(op, asked, backend) for asked in PROPERTIES if served(asked, backend)}
            for case, dtype, channels_last in of(chosen, quick):
                asked: Asked | None = None
                with lines["again"].case(f"{case}, the first time"):
                    asked = Asked(case, dtype, channels_last, backend)
                for what, line in lines.items() if asked else ():
                    count(line, str(asked), PROPERTIES[what](asked, quick))
            yield from (line for line in lines.values() if line.cases)
            yield from of_batches(op, chosen, backend, quick)
            if op == "conv2d" and backend == "cpu":
                yield of_networks(backend, quick)
