"""Wrong calls, on torch and on fastops: the same type of error, a message naming the op, nothing touched; and
right ones whose tensors overlap or come from inference mode.

The tables are in tests/wrong.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastops
from tests import wrong
from tests.reliability.process import Died, messages
from tests.wrong import Wrong, call, memory, names, torch_says

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of nested tensors and the like


class Allocations(TorchDispatchMode):
    """Notes the tensors that are made within it."""

    MAKES = ("empty", "zeros", "full", "clone", "copy", "new_", "ones")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(self.MAKES):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("row", wrong.rows(), ids=lambda row: row.source)
def test_wrong_call(row: Wrong) -> None:
    wrong.ask(row)


@pytest.mark.parametrize(
    "row", [row for row in memory.rows() if row.family != memory.READ_ONLY], ids=lambda row: row.source
)
def test_odd_memory(row: memory.Memory) -> None:
    """Read-only memory is tests/reliability/bad_input.py's, whose processes may die of it."""
    memory.ask(row)


def _writes(say: Callable[[str], None]) -> None:
    t = memory.read_only(torch.ones(3))
    say(str(t.tolist()))
    t.add_(1)


def test_a_write_to_read_only_memory_is_seen() -> None:
    found = messages(_writes, longest=120)
    assert next(found) == "[1.0, 1.0, 1.0]"
    with pytest.raises(Died, match=f"exit code -{int(signal.SIGSEGV)}"):
        next(found)


def test_rows_are_asked_once() -> None:
    named = [(row.source, row.dtype) for row in memory.rows()]
    assert len(named) == len(set(named)), sorted({str(n) for n in named if named.count(n) > 1})
    for family, table in wrong.TABLES.items():
        sources = [row[0] for row in table]
        assert len(sources) == len(set(sources)), (
            f"{family}: {sorted(s for s in sources if sources.count(s) > 1)}"
        )


def test_what_torch_says_is_said_once_of_rows_that_differ() -> None:
    said = [source for sources in torch_says.INSTEAD.values() for source in sources]
    assert len(said) == len(set(said)), sorted(s for s in said if said.count(s) > 1)
    differ = {row.source for row in wrong.rows() if row.better is not None}
    assert not set(said) - differ, "no such row, or one that says no type of its own"
    same = [row.source for row in wrong.rows() if row.better and wrong.INSTEAD.get(row.source) is row.better]
    assert not same, "torch raises the very type of the row: not to be listed"


@pytest.mark.parametrize(
    "source", [row.source for row in wrong.rows() if row.family in wrong.ARGUMENTS], ids=lambda s: s
)
def test_fails_before_allocating(source: str) -> None:
    """The tensors of the row itself aside: its arguments are made outside of the watch."""
    op, _, arguments = source.partition("(")
    known = names()
    try:
        args, kwargs = eval("grab(" + arguments, {**known, "grab": lambda *a, **k: (a, k)})
    except TypeError:
        pytest.skip("no call at all")
    with Allocations() as watch, pytest.raises(Exception):  # noqa: B017
        getattr(fastops.functional, op)(*args, **kwargs)
    assert not watch.seen, f"{watch.seen} before the error"


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bool], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize(
    "source",
    [
        "avg_pool2d(x, 2)",
        "adaptive_avg_pool2d(x, 2)",
        "max_pool2d(x, 2)",
        "adaptive_max_pool2d(x, 2)",
        "max_unpool2d(y, i, 2)",
        "conv2d(x, w)",
        "conv_transpose2d(x, v)",
        "batch_norm(x, rm, rv, g, b, True)",
        "interpolate(x, 4)",
        "interpolate(x, 4, mode='bilinear')",
    ],
)
def test_unsupported_dtype_says_what_is_supported(source: str, dtype: torch.dtype) -> None:
    known = {k: v.to(dtype) if isinstance(v, Tensor) and k != "i" else v for k, v in names().items()}
    error = call(source, known)
    assert isinstance(error, NotImplementedError), repr(error)
    for word in (str(dtype).removeprefix("torch."), "float32", "bfloat16"):
        assert word in str(error), f"{word} is missing: {error}"


@pytest.mark.parametrize("wrong", [2.0, (2.0, 2), [2, 2.0]], ids=str)
@pytest.mark.parametrize(
    "source",
    [
        "avg_pool2d(x, k)",
        "avg_pool2d(x, 2, stride=k)",
        "adaptive_avg_pool2d(x, k)",
        "max_pool2d(x, k)",
        "max_pool2d(x, 2, dilation=k)",
        "adaptive_max_pool2d(x, k)",
        "max_unpool2d(y, i, k)",
        "conv2d(x, w, stride=k)",
        "conv2d(x, w, padding=k)",
        "conv_transpose2d(x, v, stride=k)",
        "interpolate(x, k)",
    ],
)
def test_a_float_is_not_found_in_a_cache_of_ints(source: str, wrong: Any) -> None:
    """2.0 == 2 and their hashes are equal, so a call with 2 just before must not make 2.0 acceptable."""
    right = 2 if isinstance(wrong, float) else (2, 2)
    assert call(source, {**names(), "k": right}) is None
    assert isinstance(call(source, {**names(), "k": wrong}), TypeError)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="unknown backend 'tpu'"), fastops.backend("tpu"):
        pass
