"""torch.func: vmap, grad, vjp, jvp, jacrev and jacfwd of every op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

import fastops
import fastops.functional as G
from tests.cases import Case, all_cases
from tests.test_properties import first

SMALL = [case for case in all_cases() if not case.large and torch.float64 in case.dtypes]
DIFFERENTIABLE = [case for case in SMALL if case.wrt != ()]
COUNT = 3


def smallest(cases: list[Case]) -> list[Case]:
    """Of each op (and of each that is composed in torch) the case with the fewest elements, but some."""
    chosen: dict[Any, Case] = {}
    for case in sorted(cases, key=lambda c: sum(torch.Size(s).numel() for s in c.shapes)):
        if all(torch.Size(s).numel() > 8 or len(s) == 1 for s in case.shapes):
            chosen.setdefault((case.op, case.composed), case)
    return list(chosen.values())


def function_of(case: Case, arguments: tuple[Any, ...], places: tuple[int, ...], module: Any = G) -> Any:
    """The case as a function of the arguments at some places."""

    def function(*inputs: Tensor) -> Tensor:
        full = list(arguments)
        for i, t in zip(places, inputs, strict=True):
            full[i] = t
        return first(case.call(module, *full))

    return function


def scalar(function: Any) -> Any:
    return lambda *inputs: function(*inputs).nan_to_num(0, 0, 0).cos().sum()


def mapped_places(case: Case, which: str) -> list[int]:
    tensors = [i for i, a in enumerate(case.arguments(torch.float64)) if isinstance(a, Tensor)]
    return {"all": tensors, "first": tensors[:1], "others": tensors[1:]}[which]


MAPPED = [
    (case, which) for case in SMALL for which in ("all", "first", "others") if mapped_places(case, which)
]


@pytest.mark.parametrize(("case", "which"), MAPPED, ids=[f"{case}-{which}" for case, which in MAPPED])
def test_vmap(case: Case, which: str) -> None:
    """Mapped values and gradients are those of one call after another, whichever arguments are mapped."""
    arguments, places = case.arguments(torch.float64), mapped_places(case, which)
    # Variances stay positive, and positions those of maxima.
    stacked = [
        torch.stack(
            [
                (arguments[i] if arguments[i].dtype == torch.int64 else arguments[i] * (1 + k))
                for k in range(COUNT)
            ]
        )
        for i in places
    ]
    updates = case.op == "batch_norm" and arguments[1] is not None and case.kwargs.get("training", False)
    function = function_of(case, arguments, tuple(places))
    if updates and which == "first":
        with pytest.raises(RuntimeError, match="must be mapped too"):
            vmap(function)(*stacked)
        return
    ours = vmap(function)(*(t.clone() for t in stacked))
    separately = torch.stack([function(*(t[k].clone() for t in stacked)) for k in range(COUNT)])
    torch.testing.assert_close(ours, separately, equal_nan=True)
    wrt = tuple(j for j, i in enumerate(places) if i in case.differentiable(arguments))
    if wrt:
        gradient = grad(scalar(function), argnums=wrt)
        ours = vmap(gradient)(*(t.clone() for t in stacked))
        rows = [gradient(*(t[k].clone() for t in stacked)) for k in range(COUNT)]
        for mapped, one_by_one in zip(ours, zip(*rows, strict=True), strict=True):
            torch.testing.assert_close(mapped, torch.stack(one_by_one), equal_nan=True)


@pytest.mark.parametrize("case", smallest(DIFFERENTIABLE), ids=lambda c: str(c.op))
def test_transforms_are_torchs(case: Case) -> None:
    """vjp, jvp, jacrev, jacfwd, grad of grad: as of torch's functions."""
    arguments = case.arguments(torch.float64)
    places = case.differentiable(arguments)
    inputs = [arguments[i] for i in places]
    tangents = tuple(torch.ones_like(t) for t in inputs)
    results: list[list[Any]] = []
    for module in (G, F):
        function = function_of(case, arguments, places, module)
        y, pull = vjp(function, *inputs)
        total = scalar(function)
        results.append(
            [
                pull(torch.ones_like(y)),
                jvp(function, tuple(inputs), tangents),
                jacrev(function)(*inputs),
                jacfwd(function)(*inputs),
                grad(lambda *i, total=total: grad(total)(*i).square().sum())(*inputs),
            ]
        )
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_per_sample() -> None:
    """What vmap of grad is used for: each sample's gradient of a network, with the parameters in common."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        fastops.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), fastops.MaxPool2d(2),
        fastops.Conv2d(4, 4, 3, groups=2), fastops.AdaptiveAvgPool2d(1),
    ).double()  # fmt: skip
    parameters = dict(model.named_parameters())
    x = torch.randn(5, 3, 12, 10, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample.unsqueeze(0),)).square().sum()

    ours = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for k in range(5):
        one = grad(loss)(parameters, x[k])
        for name in parameters:
            torch.testing.assert_close(ours[name][k], one[name])
