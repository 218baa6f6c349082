"""Wrong calls, by family: what must raise, as torch does or better, and must leave everything as it was.

tests/test_errors.py asks each row of the tables on the default backend, tests/reliability/bad_input.py on
every backend, in a process of its own.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastops
import fastops.functional as G
from tests.cases import JUDGED, TORCH_VERSION
from tests.reliability.telling import little_memory
from tests.wrong import batch_norm, conv, dtypes, gradients, huge, interpolate, modules, pool, torch_errs
from tests.wrong import torch_says as _torch_says
from tests.wrong.memory import inference
from tests.wrong.row import Row

TABLES: dict[str, list[Row]] = {
    "pools": pool.POOLS,
    "adaptive": pool.ADAPTIVE,
    "unpool": pool.UNPOOL,
    "conv": conv.CONV,
    "conv_transpose": conv.CONV_TRANSPOSE,
    "batch_norm": batch_norm.BATCH_NORM,
    "interpolate": interpolate.INTERPOLATE,
    "dtypes": dtypes.DTYPES,
    "indices": pool.INDICES,
    "huge": huge.HUGE,
    "gradients": gradients.GRADIENTS,
    "constructors": modules.CONSTRUCTORS,
    "modules": modules.CALLS,
    "torch errs": torch_errs.TORCH_ERRS,
}
INSTEAD = _torch_says.instead()
# Of functions, with arguments that are wrong before any data is looked at.
ARGUMENTS = ("pools", "adaptive", "unpool", "conv", "conv_transpose", "batch_norm", "interpolate", "dtypes")


@dataclass(frozen=True)
class Wrong:
    """A row, and the family that it stands in."""

    family: str
    source: str
    reason: str
    better: type[Exception] | None = None

    @property
    def op(self) -> str:
        return self.source.partition("(")[0]

    @property
    def torch_says(self) -> str:
        """Of a row with a type of its own: what torch does, as `ask` has checked it."""
        assert self.better is not None
        says = INSTEAD.get(self.source, self.better)
        return "accepts it" if says is None else f"raises {says.__name__}"


def rows() -> list[Wrong]:
    return [Wrong(family, *row) for family, table in TABLES.items() for row in table]


# ---- what a row may use -------------------------------------------------------------------------


def last(indices: Tensor, value: int) -> Tensor:
    """The indices with another last one."""
    indices = indices.clone()
    indices.view(-1)[-1] = value
    return indices


def changed(function: Any, *tensors: Tensor, change: int, wrt: int) -> Any:
    """The gradient of one of the tensors, after another was changed in place since the forward."""
    fresh = [t.clone().requires_grad_(k == wrt) for k, t in enumerate(tensors)]
    y = function(*fresh)
    fresh[change].add_(1)
    return torch.autograd.grad(y.sum(), fresh[wrt])


def twice(function: Any, x: Tensor) -> Any:
    """Two backward passes through a graph that the first one frees."""
    x = x.clone().requires_grad_()
    y = function(x).sum()
    y.backward()
    y.backward()


def pulled(function: Any, x: Tensor, dy: Any) -> Any:
    """The gradient of x for a given dy."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x, dy)


def names() -> dict[str, Any]:
    """Made afresh for every call."""
    g = torch.Generator().manual_seed(0)
    return dict(
        torch=torch,
        nan=math.nan,
        inf=math.inf,
        e=torch.ones,
        last=last,
        changed=changed,
        twice=twice,
        pulled=pulled,
        inference=inference,
        nhwc=lambda t: t.contiguous(memory_format=torch.channels_last),
        nested=lambda *t: torch.nested.nested_tensor(list(t)),
        x=torch.randn(2, 4, 6, 6, generator=g),
        array=torch.randn(2, 4, 6, 6, generator=g).numpy(),
        w=torch.randn(8, 4, 3, 3, generator=g),  # of a convolution
        v=torch.randn(4, 8, 3, 3, generator=g),  # of a transposed convolution
        y=torch.randn(2, 4, 3, 3, generator=g),  # pooled, with its indices
        i=torch.zeros(2, 4, 3, 3, dtype=torch.int64),
        rm=torch.randn(4, generator=g),
        rv=torch.rand(4, generator=g),
        g=torch.randn(4, generator=g),
        b=torch.randn(4, generator=g),
    )


class Library:
    """torch's functions and layers or fastops', by name; and the layers that calls have made, with the state
    that each had then."""

    def __init__(self, functions: Any, layers: Any) -> None:
        self.made: list[tuple[nn.Module, dict[str, Any]]] = []
        self.known: dict[str, Any] = {k: getattr(functions, k) for k in dir(G) if hasattr(functions, k)}
        self.known.update({k: self._making(getattr(layers, k)) for k in fastops.modules.__all__})

    def _making(self, cls: type[nn.Module]) -> Any:
        def make(*args: Any, **kwargs: Any) -> nn.Module:
            layer = cls(*args, **kwargs)
            self.made.append((layer, {k: v.clone() for k, v in layer.state_dict().items()}))
            return layer

        return make

    def call(self, source: str, known: dict[str, Any]) -> Exception | None:
        """What the call raises."""
        try:
            eval(compile(source, "row", "eval"), {**known, **self.known})
        except Exception as error:
            return error
        return None


def theirs() -> Library:
    return Library(F, nn)


def ours() -> Library:
    return Library(G, fastops)


def call(source: str, known: dict[str, Any]) -> Exception | None:
    """What fastops raises."""
    return ours().call(source, known)


def ask_torch(wrong: Wrong) -> type[Exception] | None:
    """What torch raises, None if it takes the call; AssertionError unless that is what the row says."""
    with little_memory(4 << 30) if wrong.family == "huge" else nullcontext():
        error = theirs().call(wrong.source, names())
    found = None if error is None else type(error)
    if wrong.better is None:
        assert found is not None, f"torch accepts this; give what fastops should raise ({wrong.reason})"
        return found
    said = INSTEAD.get(wrong.source, wrong.better)
    does = "accepts it" if error is None else f"raises {type(error).__name__}({error})"
    assert found is said, f"torch {does}, but the tables say that it {wrong.torch_says}"
    return found


def ask(wrong: Wrong) -> None:
    """Raises AssertionError unless fastops raises what it should, says of what, and leaves all as it was."""
    wanted: type[BaseException] | None = wrong.better
    if TORCH_VERSION == JUDGED:
        theirs_raised = ask_torch(wrong)
        wanted = wanted or theirs_raised
    wanted = wanted or Exception
    known, untouched, library = names(), names(), ours()
    error = library.call(wrong.source, known)
    assert error is not None, f"accepted, but: {wrong.reason}"
    said = f"{type(error).__name__}({error})"
    assert isinstance(error, wanted), f"{said} instead of {wanted.__name__}: {wrong.reason}"
    for name, value in known.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, untouched[name]), f"{name} was changed by a call that failed"
    for layer, state in library.made:
        for name, value in layer.state_dict().items():
            same = value.is_meta or torch.equal(value.to(state[name].dtype), state[name])
            assert same, f"{name} of {layer} was changed by a call that failed"
    if wrong.family in (*ARGUMENTS, "indices"):
        named = wrong.op in str(error)
        named |= "mode='area'" in wrong.source and "adaptive_avg_pool2d" in str(error)
        assert named, f"the message does not name the op: {error}"
