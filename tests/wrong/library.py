"""Direct calls of ``torch.ops.fastops.…``, right ones with one argument that is something else.

No torch to compare with: such a call raises, or its results have the shapes, strides and dtypes that they
have on meta tensors, and depend neither on what lies beside its tensors nor on what was in the memory of the
results. Either way its tensors are as they were. What cannot be meant must raise: another rank, none where a
tensor is wanted, a negative size, too few or too many of them. A tensor that is not dense is right, and gives
the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastops.ops.library import OPS

FAMILY = "torch.ops.fastops"
REFUSED = (RuntimeError, ValueError, TypeError)  # the types that torch's own ops raise
SANE, RAISES, SAME = "raises or is sane", "raises", "gives the same"
DTYPES = (torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool, torch.cfloat)
GUARD = 64  # elements on either side of a tensor
HUGE = (2**31, 2**63 - 1)
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Direct:
    """A call: the number of the right one, which argument is something else, and what."""

    number: int
    argument: int
    change: str
    reason: str  # what is asked

    family = FAMILY

    @property
    def op(self) -> str:
        return right_calls()[self.number][0]

    @property
    def source(self) -> str:
        return f"{self.op} ({self.number}), {schema(self.op)[self.argument].name}: {self.change}"


def right_calls() -> list[tuple[str, Arguments]]:
    """Made afresh. Every op, with every tensor that it may have."""
    g = torch.Generator().manual_seed(0)

    def t(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    def index(below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=g)

    plain, last = torch.contiguous_format, torch.channels_last
    x, w, y = (2, 4, 5, 7), (6, 2, 3, 3), (2, 6, 5, 3)
    conv = [1, 2], [1, 0], [1, 1], 2
    window, pooled = ([2, 3], [2, 1], [0, 1]), (2, 4, 2, 7)
    average = *window, False, True, None
    maximum = *window, [1, 1], False
    cells, adaptive = [3, 2], (2, 4, 3, 2)
    norm = 0.1, 1e-5, False, torch.float32
    to_size, by_factor = ("bilinear", [3, 4], None), ("bicubic", None, [1.5, 2.0])
    rest = False, False, False
    return [
        ("conv2d", (t(*x), t(*w), t(6), *conv, [*y], None, True)),
        ("conv2d_input_grad", (t(*y), t(*w), t(4), *conv, [*x], None)),
        ("conv2d_weight_grad", (t(*y), t(*x), *conv, [*w], last, True)),
        ("conv2d_backward", (t(*y), t(*x), t(*w), *conv, True)),
        ("conv2d_bias_grad", (t(*y),)),
        ("avg_pool2d", (t(*x), *average)),
        ("avg_pool2d_adjoint", (t(*pooled), *average, [*x], plain)),
        ("adaptive_avg_pool2d", (t(*x), cells)),
        ("adaptive_avg_pool2d_adjoint", (t(*adaptive), cells, [*x], last)),
        ("max_pool2d", (t(*x), *maximum, "int64")),
        ("max_pool2d_gather", (t(*x), index(35, *pooled), *maximum, plain)),
        ("max_pool2d_scatter_add", (t(*pooled), index(35, *pooled), *maximum, [*x], last)),
        ("adaptive_max_pool2d", (t(*x), cells, "int32")),
        ("adaptive_max_pool2d_gather", (t(*x), index(35, *adaptive).int(), cells, last)),
        ("adaptive_max_pool2d_scatter_add", (t(*adaptive), index(35, *adaptive), cells, [*x], plain)),
        ("max_unpool2d", (t(*pooled), index(35, *pooled), [5, 7], None)),
        ("max_unpool2d_adjoint", (t(*x), index(35, *pooled), [5, 7], plain)),
        ("batch_norm", (t(*x), t(4), t(4), t(*x), t(4), t(4).exp(), True, *norm, None)),
        ("batch_norm", (t(*x), t(4), t(4), None, t(4), t(4).exp(), False, *norm, last)),
        (
            "batch_norm_backward",
            (t(*x), t(*x), t(4), t(4), t(4), t(4), t(*x), True, *norm, plain, [True] * 4),
        ),
        (
            "batch_norm_double_backward",
            (t(*x), t(4), t(4), t(*x), t(*x), t(4), t(4), t(4), True, *norm, last, [True] * 3),
        ),
        ("interpolate", (t(*x), *to_size, *rest)),
        ("interpolate", (t(*x), *by_factor, *rest)),
        ("interpolate_adjoint", (t(2, 4, 3, 4), *to_size, *rest, [*x], plain)),
        ("interpolate_adjoint", (t(2, 4, 7, 14), *by_factor, *rest, [*x], last)),
    ]


def schema(op: str) -> Any:
    """The op's arguments: their names and types."""
    return OPS[op].overload._schema.arguments


# ---- what an argument may be instead ------------------------------------------------------------

Changes = Iterator[tuple[str, str, Any]]  # what is said of it, what is asked, the argument


def other_tensors(t: Tensor, optional: bool) -> Changes:
    for axis, size in enumerate(t.shape):
        for new in {size + 1, size - 1, 0, 1} - {size}:
            shape = (*t.shape[:axis], new, *t.shape[axis + 1 :])
            what = t.new_ones(shape)
            yield f"of shape {shape}", SANE, what
    for what in (t.unsqueeze(0), t.flatten(), t.new_ones(()), *((t[0],) if t.dim() > 1 else ())):
        if what.dim() != t.dim():
            yield f"of shape {tuple(what.shape)}", RAISES if t.dim() == 4 else SANE, what
    for dtype in DTYPES:
        if dtype is not t.dtype:
            yield f"of {dtype}", SANE, t.to(dtype)
    yield "None", SANE if optional else RAISES, None
    yield "a number", RAISES, 1.5
    yield "without data", SANE, t.to("meta")
    yield "sparse", RAISES, t.to_sparse()
    yield "huge", RAISES, t[:1].expand(2**42, *t.shape[1:])
    yield "with gaps", SAME, t.repeat_interleave(2, -1)[..., ::2]
    yield "turned", SAME, t.transpose(0, -1).contiguous().transpose(0, -1)
    yield "a part", SAME, torch.cat([t, t, t])[t.shape[0] : 2 * t.shape[0]]
    if not t.is_floating_point():
        for value in (-1, -2, 34, 35, 10**6, 2**31 - 1, -(2**31), 2**32, 2**62, -(2**63)):
            if torch.iinfo(t.dtype).min <= value <= torch.iinfo(t.dtype).max:
                what = t.clone()
                what.view(-1)[-1] = value
                yield f"ends with {value}", SANE, what


def other_numbers(value: Any) -> Changes:
    for new in (0, 1, -1, *HUGE, -(2**63)):
        if new != value:
            yield str(new), SANE, new
    yield "text", RAISES, "1"


def other_lists(value: list[Any]) -> Changes:
    for i, one in enumerate(value):
        new: tuple[Any, ...] = (0, one + 1, -1, -(2**63), *HUGE)
        if isinstance(one, float):
            new = (0.0, -1.0, 0.3, 1e-300, 1e300, math.inf, math.nan)
        elif isinstance(one, bool):
            new = (not one,)
        for other in new:
            if other != one:
                changed = [*value[:i], other, *value[i + 1 :]]
                yield f"{i} is {other}", RAISES if other < 0 else SANE, changed
    for length in sorted({0, 1, len(value) - 1, len(value) + 1}):
        yield f"{length} of them", RAISES, (value * 2)[:length]
    yield "text", RAISES, "12"


def others(kind: str, value: Any) -> Changes:
    """By the type that the schema says."""
    kind, optional = kind.removeprefix("Optional[").removesuffix("]"), kind.startswith("Optional")
    if kind == "Tensor":
        if value is not None:
            yield from other_tensors(value, optional)
        return
    if isinstance(value, list):
        yield from other_lists(value)
    elif kind == "float":
        for number in (0.0, -1.0, 1e300, math.inf, math.nan):
            yield str(number), SANE, number
    elif kind == "bool":
        yield str(not value), SANE, not value
    elif kind == "str":
        for text in ("", "no such", "uint8", "int32", "none", "nearest", "lanczos", "area"):
            yield repr(text), RAISES if text in ("", "no such", "area") else SANE, text
    elif isinstance(value, torch.dtype):
        for dtype in (torch.float64, torch.float16, torch.int64, torch.cfloat):
            yield str(dtype), RAISES, dtype
    elif isinstance(value, torch.memory_format) or value is None:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            if memory_format is not value:
                yield str(memory_format), SANE, memory_format
        for memory_format in (torch.preserve_format, torch.channels_last_3d):
            yield str(memory_format), RAISES, memory_format
    else:
        yield from other_numbers(value)
    if value is not None:
        yield "None", SANE if optional or kind == "bool" else RAISES, None  # torch takes it for False


@lru_cache(maxsize=1)
def rows() -> list[Direct]:
    return [
        Direct(number, argument, change, asked)
        for number, (op, arguments) in enumerate(right_calls())
        for argument, value in enumerate(arguments)
        for change, asked, _ in others(str(schema(op)[argument].type), value)
    ]


# ---- asking -------------------------------------------------------------------------------------


def guarded(t: Any, byte: int, device: str) -> tuple[Any, Tensor | None]:
    """A tensor, with its strides, inside of memory that is full of a byte; and that memory, as bytes."""
    if not isinstance(t, Tensor) or t.layout is not torch.strided or t.is_meta or 0 in t.stride():
        return t, None
    span = sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)) + 1
    size = (max(span, 0) + 2 * GUARD) * t.element_size()
    memory = torch.full((size,), byte, dtype=torch.uint8, device=device)
    view = memory.view(t.dtype).as_strided(t.shape, t.stride(), GUARD)
    view.copy_(t)
    return view, memory


def call(op: str, arguments: Arguments) -> list[Tensor] | Exception:
    try:
        results = OPS[op].overload(*arguments)
    except REFUSED as error:
        return error
    return [results] if isinstance(results, Tensor) else list(results)


def computed(op: str, arguments: Arguments, byte: int, fill: bool, device: str) -> list[Tensor] | Exception:
    """What the call gives or raises, with that byte beside its tensors. `fill`: the memory of results is full
    of NaN, not of what was there."""
    views, memories = zip(*(guarded(a, byte, device) for a in arguments), strict=True)
    before = [None if m is None else m.clone() for m in memories]
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(fill)
    try:
        found = call(op, views)
    finally:
        torch.use_deterministic_algorithms(was)
    for m, b in zip(memories, before, strict=True):
        assert m is None or torch.equal(m, b), "an argument was changed, or what lies beside it"
    return found


def assert_same(ours: list[Tensor], theirs: list[Tensor], what: str) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.is_meta or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)), what


def ask(row: Direct, device: str = "cpu") -> None:
    """Raises AssertionError unless the call does what is asked of it."""
    op, arguments = right_calls()[row.number]
    changes = others(str(schema(op)[row.argument].type), arguments[row.argument])
    new = next(value for change, _, value in changes if change == row.change)
    changed = (*arguments[: row.argument], new, *arguments[row.argument + 1 :])
    found, again = computed(op, changed, 0xFF, True, device), computed(op, changed, 0, False, device)
    on_meta = call(op, tuple(a.to("meta") if isinstance(a, Tensor) else a for a in changed))
    if isinstance(found, Exception) or isinstance(again, Exception):
        assert type(found) is type(again), f"{found!r} or {again!r}, by what lies beside its tensors"
        assert row.reason != SAME, f"refused: {found!r}"
        return
    assert row.reason != RAISES, "accepted"
    assert not isinstance(on_meta, Exception), f"accepted, but on meta tensors: {on_meta!r}"
    for a, b in zip(found, on_meta, strict=True):
        ours, theirs = ((t.shape, t.stride(), t.dtype) for t in (a, b))
        assert ours == theirs, f"{ours}, but on meta tensors {theirs}"
    assert_same(found, again, "the result depends on memory that is not the call's")
    if row.reason == SAME:
        right = computed(op, arguments, 0xFF, True, device)
        assert not isinstance(right, Exception), f"the right call raises: {right!r}"
        assert_same(found, right, "another result")
