"""torch's own material, asked of every backend: values, gradients and layouts of the results.

A case is one sample of `op_db` (inputs of functions) or `module_db` (of modules), which ship with torch, in
one dtype and layout; or one of their wrong inputs, which must raise the type of error that torch says there;
or a numerical check of a derivative in fp64 on one case of tests/cases; or `torch.library.opcheck` of one
call of an op. The goal is that none fails.

The measure of values and gradients is torch's own error: a failure is an error against fp64 of more than
twice torch's at that dtype plus two units of the largest value and some roundings, in the precision of the
sum, of the terms; *worst* is the largest error as a part of that. In fp64, where torch is the reference,
results agree to 1e-10. Gradients are not compared where max unpooling has duplicate indices (fastops has a
rule for them, torch has not). Layouts are compared with torch's. Emulated and interpreted kernels get some
samples of each kind, evenly spread; their derivatives, and those by more than 100 elements, are checked in
one random direction instead of by every element.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch

import fastops
from fastops.ops.library import OPS
from tests import interpreter
from tests import torch_samples as their
from tests.cases import Case, all_cases
from tests.conftest import device_of
from tests.gradients import CHECKS, function_and_inputs
from tests.reliability.backends import DTYPES, LAYOUTS, is_slow, name, runnable
from tests.reliability.tally import Skip, Tally

INTERPRETED = True

EVERYTHING = 10**9
ELEMENTS = 100  # up to so many inputs, derivatives are checked by each element


def most(backend: str, quick: bool) -> int:
    """How many samples of one kind a backend is given."""
    if backend == interpreter.NAME:
        return 2 if quick else 12
    if is_slow(backend):
        return 3 if quick else 48
    return 8 if quick else EVERYTHING


def run(quick: bool) -> Iterator[Tally]:
    warnings.simplefilter("ignore")  # torch's, of its own samples
    torch.set_num_threads(1)  # samples are tiny
    for backend in runnable():
        with fastops.backend(backend):
            yield from samples(backend, quick)
            yield from error_inputs(backend)
            yield from modules(backend, quick)
            yield from derivatives(backend, quick)
    if not interpreter.IS_ON:
        yield from library(quick)


def samples(backend: str, quick: bool) -> Iterator[Tally]:
    dtypes = (torch.float32,) if quick and backend == interpreter.NAME else DTYPES
    for info in their.INFOS:
        for dtype in dtypes:
            every = their.samples(info, dtype, device_of(backend))
            for layout in LAYOUTS:
                tally = Tally(
                    their.label(info),
                    "value, layout, gradients",
                    backend,
                    name(dtype),
                    layout,
                    unit="of what is allowed",
                )
                for number, sample in their.spread(every, most(backend, quick)):
                    with tally.case(f"sample {number}, {their.describe(sample)}"):
                        asked = their.in_channels_last(sample) if layout == "channels_last" else sample
                        if asked is None:
                            raise Skip("channels_last: the sample has no 4-d tensor that differs in it")
                        tally.measure(their.compare(info, asked))
                yield tally


def error_inputs(backend: str) -> Iterator[Tally]:
    for info in their.INFOS:
        if info.error_inputs_func is None:
            continue
        tally = Tally(their.label(info), "torch's wrong inputs: same type of error", backend)
        for number, wrong in enumerate(info.error_inputs(device_of(backend))):
            with tally.case(f"wrong input {number}, {their.describe(wrong.sample_input)}"):
                their.refuse(info, wrong)
        yield tally


def modules(backend: str, quick: bool) -> Iterator[Tally]:
    dtypes = (torch.float32,) if quick or is_slow(backend) else DTYPES
    for info in their.MODULES:
        for dtype in dtypes:
            asked = "repr, state_dict, values, gradients, copies"
            tally = Tally(info.module_cls.__name__, asked, backend, name(dtype))
            every = list(their.module_samples(info, dtype, device_of(backend)))
            for _, (case, training, sample) in their.spread(every, most(backend, quick)):
                with tally.case(case):
                    their.compare_module(info.module_cls, training, sample, dtype, device_of(backend))
            yield tally
        if info.module_error_inputs_func is not None:
            tally = Tally(info.module_cls.__name__, "torch's wrong inputs: same type of error", backend)
            for wrong in their.module_refusals(info):
                with tally.case(str(wrong.module_error_input.desc)):
                    their.refuse_module(info, wrong)
            yield tally


def derivatives(backend: str, quick: bool) -> Iterator[Tally]:
    """gradcheck, forward-mode gradcheck and gradgradcheck of the tables' cases."""
    briefly = quick and backend == interpreter.NAME
    checks = dict(list(CHECKS.items())[:1]) if briefly else CHECKS
    for op, cases in differentiable_cases(backend, quick).items():
        for check, holds in checks.items():
            for layout in LAYOUTS[:1] if briefly else LAYOUTS:
                tally = Tally(op, check, backend, "float64", layout)
                for case in cases:
                    with tally.case(str(case)):
                        of_case = function_and_inputs(case, layout == "channels_last", device_of(backend))
                        elements = sum(t.numel() for t in of_case[1])
                        fast = quick or is_slow(backend) or elements > ELEMENTS
                        assert holds(*of_case, fast=fast)
                yield tally


def differentiable_cases(backend: str, quick: bool) -> dict[str, list[Case]]:
    """Of each op: all, or some evenly spread; for the interpreter, which takes seconds, the smallest."""
    of_op: dict[str, list[Case]] = {}
    for case in all_cases():
        if not case.large and case.wrt != () and torch.float64 in case.dtypes:
            of_op.setdefault(case.op, []).append(case)
    if backend == interpreter.NAME:

        def elements(case: Case) -> int:
            return sum(map(math.prod, case.shapes))

        filled = {op: [c for c in cases if elements(c)] for op, cases in of_op.items()}
        return {op: sorted(cases, key=elements)[: 1 if quick else 6] for op, cases in filled.items()}
    number = min(most(backend, quick), 4) if quick else most(backend, quick)
    return {op: [case for _, case in their.spread(cases, number)] for op, cases in of_op.items()}


def library(quick: bool) -> Iterator[Tally]:
    """opcheck of every op of torch.library, on the calls that the tables' cases make of it."""
    from tests.test_library import SMALL, calls_of, check_op
    from tests.test_properties import one_per_op

    tallies = {op: Tally(f"torch.ops.fastops.{op}", "torch.library.opcheck", "cpu", "float32") for op in OPS}
    for case in one_per_op(SMALL) if quick else SMALL:
        for channels_last in (False,) if quick else (False, True):
            for op, arguments in calls_of(case, channels_last):
                with tallies[op.name().removeprefix("fastops::")].case(str(case)):
                    check_op(op, arguments)
    for tally in tallies.values():
        if not tally.cases:
            with tally.case("no case calls it"):
                raise AssertionError("no case calls it")
        yield tally
