"""Every case against torch: values, gradients, layouts; and repeatable bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G
from tests.cases import Case, all_cases
from tests.conftest import SLOW, device_of
from tests.gradients import CHECKS, function_and_inputs
from tests.tolerance import assert_accurate, assert_same_layout

CASES = all_cases()
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:]
)
every_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])


def to_double(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.dtype.is_floating_point else a for a in arguments)


def on_cpu(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What torch is asked with: its CPU kernels are right, of those for GPUs not all (2.11: the gradient of
    avg_pool2d of overlapping windows in channels_last, places of NaNs, ties of nearest-exact)."""
    return tuple(a.cpu() if isinstance(a, Tensor) else a for a in arguments)


def run(
    module: Any, case: Case, arguments: tuple[Any, ...], dy: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of the case's function in torch.nn.functional or fastops.functional."""
    wrt = case.differentiable(arguments)
    arguments = tuple(
        a.detach().clone().requires_grad_(i in wrt) if isinstance(a, Tensor) else a
        for i, a in enumerate(arguments)
    )
    result = case.call(module, *arguments)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    y = outputs[0]
    if dy is None or not y.requires_grad:
        return [o.detach() for o in outputs], []
    grads = torch.autograd.grad(y, [arguments[i] for i in wrt], dy.to(y.device, y.dtype))
    return [o.detach() for o in outputs], list(grads)


@every_layout
@every_dtype
@every_case
def test_values_and_gradients(case: Case, dtype: torch.dtype, channels_last: bool, backend: str) -> None:
    if dtype not in case.dtypes:
        pytest.skip("not a dtype of this case")
    arguments = case.arguments(dtype, channels_last, device_of(backend))
    for_torch = on_cpu(arguments)
    reference, _ = run(F, case, to_double(for_torch), None)
    dy = torch.randn(reference[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    reference, reference_grads = run(F, case, to_double(for_torch), dy)
    theirs, their_grads = run(F, case, for_torch, dy)
    wrt = case.differentiable(arguments)
    ours, our_grads = map(on_cpu, run(G, case, arguments, dy))
    assert len(ours) == len(theirs)
    for o, t, r in zip(ours, theirs, reference, strict=True):
        if o.dtype.is_floating_point:
            assert_accurate(o, t, r, "value")
        else:
            assert torch.equal(o, t)
        assert_same_layout(o, t)
    for i, (o, t, r) in enumerate(zip(our_grads, their_grads, reference_grads, strict=True)):
        assert_accurate(o, t, r, f"gradient {i}")
        # Not torch's layout: some of its backward passes lose channels_last.
        assert_same_layout(o, arguments[wrt[i]])


@every_layout
@pytest.mark.parametrize("case", [c for c in CASES if not c.large and c.wrt != ()], ids=str)
def test_gradcheck(case: Case, channels_last: bool, backend: str) -> None:
    function, inputs = function_and_inputs(case, channels_last, device_of(backend))
    for check in CHECKS.values():
        assert check(function, inputs, fast=True)


@every_layout
@every_case
def test_repeatable(case: Case, channels_last: bool, backend: str, threads: None) -> None:
    """Equal bit for bit from run to run, on one thread and on two or three, in backward too. (The emulation
    has no such threads; it runs those of a block in another order each time.)"""
    arguments = case.arguments(torch.float32, channels_last, device_of(backend))
    shape = run(G, case, arguments, None)[0][0].shape
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    results = []
    for count in (1, 1) if backend in SLOW else (1, 2, 3, 3):
        torch.set_num_threads(count)
        outputs, grads = run(G, case, arguments, dy)
        results.append([*outputs, *grads])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a.nan_to_num(0), b.nan_to_num(0)), "differs between runs"


@every_case
def test_odd_strides(case: Case, backend: str) -> None:
    """Slices and transposed views give what their dense copies give, bit for bit."""
    arguments = case.arguments(torch.float32, device=device_of(backend))

    def strided(t: Any) -> Any:
        if not isinstance(t, Tensor) or t.dim() != 4:
            return t
        wide = torch.empty(*t.shape[:3], 2 * t.shape[3] + 1, dtype=t.dtype, device=t.device)
        view = wide[..., 1::2]
        view.copy_(t)
        return view

    dense = case.call(G, *arguments)
    views = case.call(G, *map(strided, arguments))
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (dense, views)), strict=True):
        assert torch.equal(a.nan_to_num(0), b.nan_to_num(0))
