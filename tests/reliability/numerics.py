"""The error of every op beside torch's, both against fp64, on ordinary data and on hard data.

A case is one value or one gradient of a call, of the tests' tables, in either layout (in the interpreter,
which is slow, each in one dtype and layout, that differs by the kind of data). The figure is the
error ÷ (torch's error at the same dtype + half a rounding floor of two units in the last place of the largest
value; in fp64 torch is the reference, and the floor is 64 units); the goal is at most 2, the rule of
tests/tolerance.py. NaN and infinities must be where torch has them in fp64, or at the same dtype; errors are
those of the elements that are finite in all three.

Hard data: magnitudes of 1e30 (fp16: 1e3); subnormals; channels that are constants of 1e7 (fp16: 1e3);
alternating signs, so that sums cancel; factors of 2^±20 (fp16: 2^±6) between neighbours; NaN or infinities at
random places of each argument, of the running statistics, and of dy.

Where fastops differs from torch, which a line's note counts and which is no failure:

- A padded position is a zero that is multiplied: a weight that is not finite gives NaN there, where some of
  torch's kernels leave it out (and fastops', too, where that is cheaper). That is allowed in the channels of
  such a weight, and nowhere else.
- Interpolation does not read what has no weight (torch: 0 · NaN), and adds the weights of taps that an edge
  folds onto one element before it multiplies (torch: ∞ − ∞). Asked is: what a tap with weight reads decides.
- Batch norm is (x − mean) · invstd · w + b: an infinite w gives an infinity where torch's x · alpha + beta
  gives NaN, and its gradient NaN where torch has an infinity. Infinite weights are skipped.
- On GPUs an infinity in a convolution in fp32 may give NaN: the parts of the other factor may be zero. And of
  subnormals they are multiples of the smallest number of TF32, 2^-136: results are asked no more there.

And for the rest:

- bf16 on processors with AVX512-BF16 is multiplied by VDPBF16PS, which takes subnormals for zeros; torch's
  kernels there use it too, so that neither is asked for more.
- 3 × 3 convolutions by Winograd compute results that are not finite again by the plain sum.
- Where the terms of a sum cancel, torch's order may happen to lose nothing: a hard result whose error is more
  than twice torch's may be off by eight roundings, in the precision of the sum, of its terms: the largest sum
  of their magnitudes. A line counts those.
- The reference of batch norm of constant channels, in training, is that of the channels without the
  constant, which changes nothing: in fp64, too, torch finds a variance there. *training, …* are calls where
  the usual formulas lose every digit: by the rule, and the largest error of them all is to be no larger than
  torch's. (At 1e30 both are as bad: the variance is beyond fp32, and y is 0.)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastops
import fastops.functional as G
from tests import interpreter, simt
from tests.cases import Case
from tests.conftest import device_of
from tests.reliability import terms
from tests.reliability.calls import DTYPES, affordable, backends, by_label, name, some
from tests.reliability.tally import Skip, Tally
from tests.test_against_torch import on_cpu, to_double
from tests.test_against_torch import run as call
from tests.tolerance import error_ratio, largest, max_error

INTERPRETED = True

NAN, INF = float("nan"), float("inf")
DY = -1  # beside numbers of arguments
LARGE = {torch.float16: 1e3}  # else 1e30
FAR = {torch.float16: 1e3}  # else 1e7
# So that fp16 holds the results, too.
POWERS = {torch.float16: 6}  # else 20

# What makes data hard: it changes one tensor, of which it knows whether it is a weight.
Change = Callable[[Tensor, bool, torch.Generator], Tensor]


def large(t: Tensor, weight: bool, g: torch.Generator) -> Tensor:
    return t if weight else t * LARGE.get(t.dtype, 1e30)


def subnormal(t: Tensor, weight: bool, g: torch.Generator) -> Tensor:
    return t if weight else t * (torch.finfo(t.dtype).smallest_normal / 4)


def constant(t: Tensor, weight: bool, g: torch.Generator) -> Tensor:
    """Each channel one value, not far from the same large one."""
    if weight or t.dim() < 2:
        return t
    first = t.select(-1, 0)
    while first.dim() > (2 if t.dim() > 3 or t.dim() == 2 else 1):
        first = first.select(-1, 0)
    channels = first[0] if t.dim() != 3 else first
    return torch.empty_like(t).copy_(
        (FAR.get(t.dtype, 1e7) * (1 + channels / 8)).view(-1, *[1] * (t.dim() - (1 if t.dim() == 3 else 2)))
    )


def alternating(t: Tensor, weight: bool, g: torch.Generator) -> Tensor:
    """Weights are about 1, values about ±64: next to a positive one stands a negative one."""
    if weight:
        return 1 + t / 64
    signs = torch.ones(())
    for extent in t.shape:
        signs = signs[..., None] * (1 - 2 * (torch.arange(extent) % 2))
    return torch.empty_like(t).copy_((64 + t) * signs.to(t.dtype))


def wide(t: Tensor, weight: bool, g: torch.Generator) -> Tensor:
    most = POWERS.get(t.dtype, 20) // (2 if weight else 1)
    powers = torch.randint(-most, most + 1, t.shape, generator=g)
    return torch.empty_like(t).copy_(torch.ldexp(t.double(), powers).to(t.dtype))


def sprinkled(*values: float) -> Change:
    """One element in thirty, at least one."""

    def change(t: Tensor, weight: bool, g: torch.Generator) -> Tensor:
        flat = t.flatten().clone()
        at = torch.randint(0, t.numel(), (1 + t.numel() // 30,), generator=g)
        flat[at] = torch.tensor(values, dtype=t.dtype)[torch.arange(len(at)) % len(values)]
        return torch.empty_like(t).copy_(flat.view(t.shape))

    return change


KINDS: dict[str, Change] = {
    "1e30": large,
    "subnormals": subnormal,
    "constant channels": constant,
    "alternating signs": alternating,
    "wide range": wide,
    "NaN anywhere": sprinkled(NAN),
    "infinities anywhere": sprinkled(INF, -INF),
    "NaN and infinities": sprinkled(NAN, INF, -INF),
}
SPRINKLED = [kind for kind in KINDS if "NaN" in kind or "infinities" in kind]


# Bilinear and the like: sums with weights, which may be 0.
WEIGHTED = ("bilinear", "bicubic", "lanczos")


def positions(arguments: tuple[Any, ...]) -> list[int]:
    """The arguments that are changed: tensors of numbers."""
    return [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.dtype.is_floating_point]


def is_weight(case: Case, i: int) -> bool:
    """Neither x nor a residual, which has x's shape."""
    return i > 0 and not (case.composed and i == 5)


def hardened(
    case: Case, arguments: tuple[Any, ...], change: Change, only: int | None, g: torch.Generator
) -> tuple[Any, ...]:
    changed = list(arguments)
    for i in positions(arguments) if only is None else [only]:
        if only is None and case.op == "batch_norm" and is_weight(case, i):
            continue  # running statistics stay as they are beside hard data
        changed[i] = change(arguments[i], is_weight(case, i), g)
    return tuple(changed)


def kind_of_number(t: Tensor) -> Tensor:
    """0 of finite ones, and a number for NaN and each infinity."""
    return t.isnan() * 1 + t.isposinf() * 2 + t.isneginf() * 3


class Comparison:
    """One call at a dtype: by torch in fp64, by torch, and by a backend."""

    def __init__(
        self, case: Case, dtype: torch.dtype, channels_last: bool, kind: str = "", only: int | None = None
    ):
        g = torch.Generator().manual_seed(7)
        self.case, self.dtype, self.kind, self.only = case, dtype, kind, only
        arguments = case.arguments(dtype, channels_last)
        if kind and only != DY:
            arguments = hardened(case, arguments, KINDS[kind], only, g)
        self.arguments = arguments
        self.wrt = case.differentiable(arguments)
        self.dy = torch.randn(call(F, case, arguments, None)[0][0].shape, generator=g).bfloat16()
        if only == DY:
            self.dy = KINDS[kind](self.dy, False, g)
        self.reference = self.by(F, self.exactly(to_double(arguments)))
        self.theirs = self.by(F, arguments)

    def by(self, module: Any, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        outputs, grads = call(module, self.case, arguments, self.dy)
        self.outputs = len(outputs)
        return on_cpu((*outputs, *grads))

    def exactly(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments in fp64; of batch norm's constant channels without the constant."""
        x, *others = arguments
        if self.case.op == "batch_norm" and self.kind == "constant channels" and self.trains:
            x = x - x[(slice(0, 1), slice(None), *[slice(0, 1)] * (x.dim() - 2))]
        return x, *others

    @property
    def trains(self) -> bool:
        return bool(self.case.kwargs.get("training"))

    def name(self, i: int) -> str:
        return ("y", "indices")[i] if i < self.outputs else f"gradient {self.wrt[i - self.outputs]}"

    def tally(self, tally: Tally, backend: str, where: str) -> None:
        on = device_of(backend)
        with fastops.backend(backend):
            ours = self.by(G, tuple(a.to(on) if isinstance(a, Tensor) else a for a in self.arguments))
        for i, result in enumerate(ours):
            with tally.case(f"{where}, {self.name(i)}"):
                self.compare(tally, backend, i, result, where)

    def compare(self, tally: Tally, backend: str, i: int, ours: Tensor, where: str) -> None:
        theirs, reference = self.theirs[i], self.reference[i]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if not ours.dtype.is_floating_point:
            assert torch.equal(ours, theirs), "not torch's indices"
            return
        if self.case.op == "batch_norm" and self.only == 3 and "infinities" in self.kind:
            raise Skip("batch norm with an infinite weight: said above")
        # In the reference what is beyond the dtype is an infinity.
        kinds = [kind_of_number(t) for t in (ours, theirs, reference.to(ours.dtype))]
        differs = (kinds[0] != kinds[1]) & (kinds[0] != kinds[2])
        wrong = differs & ~self.may_differ(backend, i, *kinds)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            values = f"{ours[at]:.3g}, torch {theirs[at]:.3g}, in fp64 {reference[at]:.3g}"
            raise AssertionError(f"{int(wrong.sum())} not finite where torch is, or the reverse; {values}")
        if differs.any():
            tally.elsewhere = getattr(tally, "elsewhere", 0) + int(differs.sum())
        tally.elements = getattr(tally, "elements", 0) + differs.numel()
        finite = (kinds[0] == 0) & (kinds[1] == 0) & (kinds[2] == 0)
        ours, theirs, reference = ours[finite], theirs[finite], reference[finite]
        ratio = error_ratio(ours, theirs, reference)
        if ratio > 2 and self.kind == "subnormals" and self.in_parts(backend):
            ratio = 2 * max_error(ours, reference) / largest(self.parts[i])
        elif ratio > 2 and self.kind not in ("", "subnormals"):
            tally.by_terms = getattr(tally, "by_terms", 0) + 1
            ratio = error_ratio(ours, theirs, reference, self.terms[i][finite])
        if tally.worst is None or ratio > tally.worst:
            tally.where = f"{where}, {self.name(i)}"
        tally.measure(ratio)
        assert ratio <= 2, f"{ratio:.3g} times torch's error"

    def in_parts(self, backend: str) -> bool:
        """Whether factors are multiplied in parts, each in TF32."""
        on_gpu = device_of(backend) == "cuda" or backend in (simt.NAME, interpreter.NAME)
        return on_gpu and self.dtype is torch.float32 and self.case.op.startswith("conv")

    def may_differ(self, backend: str, i: int, ours: Tensor, theirs: Tensor, exact: Tensor) -> Tensor:
        """Where another kind of number than torch's is right, or is a limit that the page names."""
        nowhere = torch.zeros_like(ours, dtype=torch.bool)
        if self.kind not in SPRINKLED:
            return nowhere
        if self.case.op.startswith("conv"):
            allowed = (ours == 1) & (exact >= 2) if self.in_parts(backend) else nowhere
            padded = 0 if "transpose" in self.case.op else DY  # dw is this times what may be padding
            if self.only == 1 or (self.only == padded and self.name(i) == "gradient 1"):
                reached = self.reached(i)
                zeros = ~reached | (ours == 1) | ((ours > 0) & (self.kind != "NaN anywhere"))
                allowed |= zeros & self.in_channels(i, padded)
            return allowed
        if self.case.op == "interpolate" and self.case.kwargs["mode"] in WEIGHTED:
            decided = (ours == 1) if self.kind == "NaN anywhere" else (ours > 0)
            return torch.where(self.reached(i), decided, (ours == 0) | (exact > 0))
        return nowhere

    def in_channels(self, i: int, padded: int) -> Tensor:
        """Of a convolution's result, which channels (of dw: the first) have something not finite in them."""
        result = self.name(i)
        if self.only == padded:
            source = self.dy if padded == DY else self.arguments[0]
            return (~source.isfinite()).transpose(0, -3).flatten(1).any(1).view(-1, 1, 1, 1)
        if result not in ("y", "gradient 0"):
            return torch.zeros((), dtype=torch.bool)  # no weight is in them
        w = ~self.arguments[1].isfinite()
        groups, transposed = self.case.kwargs.get("groups", 1), "transpose" in self.case.op
        if (result == "y") != transposed:
            channels = w.flatten(1).any(1)
        else:
            channels = w.view(groups, -1, *w.shape[1:]).transpose(1, 2).flatten(2).any(2).flatten()
        return channels.view(-1, 1, 1)

    def reached(self, i: int) -> Tensor:
        """Where a result of a linear op reads something that is not finite, with a weight that is more than
        a rounding: the op of ones and of where those are."""
        if self.case.op == "interpolate":
            source = self.dy if self.only == DY else self.arguments[0]
            if (i < self.outputs) == (self.only == DY):
                return torch.zeros(self.theirs[i].shape, dtype=torch.bool)
            weights = (self.weights if i < self.outputs else self.weights.T) > 1e-6
            found = (~source.isfinite()).double().flatten(-2) @ weights.double()
            return (found > 0).view(self.theirs[i].shape)
        marks = [
            (~a.isfinite()).double() if j == self.only else (torch.ones_like(a) if j < 2 else a * 0).double()
            for j, a in enumerate(self.arguments)
        ]
        dy = (~self.dy.isfinite()).double() if self.only == DY else torch.ones_like(self.dy)
        outputs, grads = call(F, self.case, tuple(marks), dy)
        if i < self.outputs:
            return outputs[i] > 0 if self.only != DY else torch.zeros_like(outputs[i], dtype=torch.bool)
        found = grads[i - self.outputs]
        return (
            torch.zeros_like(found, dtype=torch.bool)
            if self.wrt[i - self.outputs] == self.only
            else found > 0
        )

    @cached_property
    def weights(self) -> Tensor:
        """|A| of an interpolation: (inputs, outputs) of a plane."""
        h, w = self.case.shapes[0][-2:]
        basis = torch.eye(h * w, dtype=torch.float64).view(h * w, 1, h, w)
        return self.case.call(F, basis).abs().flatten(1)

    @cached_property
    def terms(self) -> tuple[Tensor, ...]:
        return terms.of_call(self.case, self.arguments, self.dy)

    @cached_property
    def parts(self) -> tuple[Tensor, ...]:
        return terms.of_parts(self.case, self.arguments, self.dy)


class Line(Tally):
    """A tally that says where the worst was, and how much differs from torch without being a failure."""

    where = ""
    elements = elsewhere = 0
    by_terms = 0

    def record(self) -> dict[str, Any]:
        counts = f"{self.elsewhere:,} of {self.elements:,} elements differ as said above"
        allowed = [counts] if self.elsewhere else []
        if self.by_terms:
            allowed.append(f"{self.by_terms:,} measured by their terms")
        self.note = "; ".join(
            [*([f"worst: {self.where}"] if self.worst and self.worst > 1 else []), *allowed]
        )
        return super().record()


def places(case: Case, kind: str) -> list[int | None]:
    """Which tensor is hard: all at once, or, of what is not finite, each in turn, and dy."""
    if kind not in SPRINKLED:
        return [None]
    found: list[int | None] = [*positions(case.arguments(case.dtypes[-1]))]
    return found if case.wrt == () else [*found, DY]


NAMED = re.compile("96x3x3|70x1x5x5|129x131")  # Winograd, depthwise, long sums


def asked(cases: list[Case], backend: str, quick: bool, kind: str) -> list[Case]:
    """Of an op's cases those that a backend is asked."""
    served = affordable(cases, backend, quick)
    if not quick:
        return served
    named = [c for c in served if NAMED.search(str(c))] if backend == "cpu" else []
    return [*some(served, 1 if kind else 3), *named]


def lines(op: str, cases: list[Case], dtype: torch.dtype, kind: str, quick: bool) -> Iterator[Tally]:
    """A line for each backend that has cases: each case, layout and place; quick: layouts in turns."""
    found = {backend: Line(op, kind or "ordinary data", backend, name(dtype)) for backend in backends()}
    cases_of = {backend: asked(cases, backend, quick, kind) for backend in found}
    turn = DTYPES.index(dtype)
    layouts = itertools.cycle([(turn % 2 == 1,), (turn % 2 == 0,)] if quick else [(False, True)])
    for case in cases:
        askers = [backend for backend in found if case in cases_of[backend]]
        if not askers or dtype not in case.dtypes:
            continue
        if quick and NAMED.search(str(case)) and dtype not in (torch.float32, torch.bfloat16):
            continue
        for channels_last, only in itertools.product(next(layouts), places(case, kind)):
            way = 2 * turn + channels_last
            if interpreter.IS_ON and not quick and way != case.turn(2 * len(DTYPES), kind):
                continue
            place = "" if only is None else f" in {'dy' if only == DY else f'argument {only}'}"
            where = f"{case} {name(dtype)}{' channels_last' if channels_last else ''}{place}"
            comparison = Comparison(case, dtype, channels_last, kind, only)
            for backend in askers:
                try:
                    comparison.tally(found[backend], backend, where)
                except Exception as error:
                    with found[backend].case(where):
                        raise error
    yield from (line for line in found.values() if line.cases or line.skipped)


# x, and in words what is asked of it.
CATASTROPHES: dict[str, Callable[[Tensor], Tensor]] = {
    "constant channels of 1e7": lambda t: torch.full_like(t, 1e7),
    "1e7 ± 1": lambda t: 1e7 + t.sign(),
    "1e30": lambda t: t * 1e30,
    "a mean of 1e4 beside a deviation of 1": lambda t: 1e4 + t,
}


def catastrophes() -> Iterator[Tally]:
    """Batch norm where the usual formulas lose every digit, in fp32: by the rule, the largest error no larger
    than torch's, and of constants none at all."""
    for why, make in CATASTROPHES.items():
        for backend in backends():
            line = Tally("batch_norm", f"training, {why}", backend, "float32")
            worst: dict[str, list[float]] = {}
            for shape, channels_last in itertools.product(((4, 3, 6, 6), (8, 32, 5, 7)), (False, True)):
                g = torch.Generator().manual_seed(5)
                x, dy = make(torch.randn(shape, generator=g)), torch.randn(shape, generator=g)
                if channels_last:
                    x = x.contiguous(memory_format=torch.channels_last)
                # What all have in common changes nothing, and is no number that fp64 rounds.
                exact = trained(F, x.double() - x.double()[0, 0, 0, 0], dy)
                theirs = trained(F, x, dy)
                with fastops.backend(backend):
                    ours = on_cpu(trained(G, x.to(device_of(backend)), dy))
                for result, *tensors in zip(("y", "dx", "dw"), ours, theirs, exact, strict=True):
                    with line.case(f"{shape} {'channels_last' if channels_last else ''}, {result}"):
                        errors = [max_error(t, tensors[2]) for t in tensors[:2]]
                        worst[result] = [*map(max, worst.get(result, [0.0, 0.0]), errors)]
                        assert error_ratio(*tensors) <= 2, errors
                        assert errors[0] == 0 or result != "y" or not why.startswith("constant"), errors
            for result, errors in worst.items():
                with line.case(f"the largest error of {result}"):
                    assert errors[0] <= errors[1] * (1 + 1e-6), errors
            line.note = "largest errors, fastops beside torch: " + ", ".join(
                f"{result} {ours_worst:.2g} / {torch_worst:.2g}"
                for result, (ours_worst, torch_worst) in worst.items()
            )
            yield line


def trained(module: Any, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """y, dx and dw in training."""
    x = x.clone().requires_grad_()
    w = torch.ones(x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    y = module.batch_norm(x, None, None, w, None, training=True)
    return y.detach(), *torch.autograd.grad(y, (x, w), dy.to(y.device, y.dtype))


def run(quick: bool) -> Iterator[Tally]:
    torch.set_num_threads(1)
    # The interpreter is slow.
    few = quick and interpreter.IS_ON
    kinds, dtypes = (SPRINKLED[-1:], DTYPES[1:4:2]) if few else (list(KINDS), DTYPES)
    for op, cases in by_label().items():
        for dtype in dtypes:
            yield from lines(op, cases, dtype, "", quick)
    yield from catastrophes()
    for op, cases in by_label().items():
        for kind, dtype in itertools.product(kinds, dtypes[:1] if few else dtypes):
            yield from lines(op, cases, dtype, kind, quick)
