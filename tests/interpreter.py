"""The Triton kernels in Triton's interpreter, on CPU tensors: in a process of its own, with
TRITON_INTERPRET=1 set before Triton is imported.

    TRITON_INTERPRET=1 python -m pytest tests/test_against_torch.py      (make test does so)

What the interpreter does not do as a GPU does is repaired here, and what a GPU would not notice is noticed:
  - bfloat16 is kept as bits. Casts round to nearest even, products of matrices are of the values, and any
    other arithmetic on it is an error: kernels compute in wider types.
  - range(n) with a number that is known at run time works with every numpy.
  - an address outside of the tensors that a launch was given is an error, and so is one that two programs,
    or one of them twice, store to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

IS_ON = os.environ.get("TRITON_INTERPRET") == "1"
NAME = "triton-interpreted"
# Cases that it takes seconds for: many programs, or many taps in turn. In the long sweep only.
SLOW = re.compile(
    r"gradcheck|(70x9x9|260x1x3|2x64x2x2|19x12x37).*nchw|x9000|x4300|kernel_size=13|64x257|129x131|37x5x33"
)


def launcher(op: str) -> Callable[..., None] | None:
    """The backend: runs the op's Triton kernels on CPU tensors."""
    from fastops.backends import triton as kernels

    reason = kernels.why_unavailable()
    assert reason is None, reason
    return kernels.launcher(op)


def to_float32(bits: np.ndarray) -> np.ndarray:
    """bfloat16, given as bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16 (ties: the even one)."""
    narrow = np.ascontiguousarray(values, np.float32)
    bits = narrow.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(narrow), np.uint16(0x7FC0), rounded).reshape(np.shape(values))


class Memory:
    """Which addresses one launch may use, and those that it has stored to."""

    def __init__(self) -> None:
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.stored: list[np.ndarray] = []

    def add(self, tensor: Any) -> None:
        if tensor.numel() == 0:
            return
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        self.begins.append(tensor.data_ptr())
        self.ends.append(tensor.data_ptr() + (last + 1) * tensor.element_size())

    def check(self, what: str, pointers: Any, mask: np.ndarray) -> np.ndarray:
        """The addresses that are used; raises where one is in no tensor."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = pointers.data[np.broadcast_to(mask, pointers.data.shape)].astype(np.int64)
        inside = np.zeros(addresses.shape, bool)
        for begin, end in zip(self.begins, self.ends, strict=True):
            inside |= (addresses >= begin) & (addresses + size <= end)
        if not inside.all():
            raise IndexError(f"{what}: {np.count_nonzero(~inside)} of {inside.size} addresses in no tensor")
        return addresses

    def check_stored(self) -> None:
        if self.stored:
            addresses = np.concatenate(self.stored)
            if np.unique(addresses).size != addresses.size:
                raise RuntimeError("an address was stored to twice")


def repair() -> None:
    """Changes Triton's interpreter in this process."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    memory = Memory()

    def is_bfloat16(h: Any) -> bool:
        return bool(h.dtype.scalar == tl.bfloat16)

    def widened(h: Any) -> Any:
        return handle(to_float32(h.data), tl.float32) if is_bfloat16(h) else h

    # ---- bfloat16
    cast, binary, unary = builder.cast_impl, builder.binary_op, builder.unary_op

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == to.scalar:
            return source
        if to.scalar == tl.bfloat16:
            return handle(to_bfloat16(widened(source).data), tl.bfloat16)
        return cast(self, widened(source), to)

    def only_wider(operation: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: Any, first: Any, *others: Any) -> Any:
            assert not is_bfloat16(first), "arithmetic in bfloat16"
            return operation(self, first, *others)

        return checked

    # Each element in the same order, by fused multiply-adds: numpy's BLAS treats the edge of a tile otherwise
    # on some processors, and an image's result then goes by its place in the batch.
    def dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        x, y = (widened(h).data.astype(np.float64) for h in (a, b))
        total = np.zeros_like(d.data)
        with np.errstate(all="ignore"):
            for k in range(x.shape[-1]):
                total = (total + x[..., :, k, None] * y[..., k, None, :]).astype(total.dtype)
            return handle(total + d.data, d.dtype.scalar)

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = lambda self, source, to, _rounding: cast_impl(self, source, to)
    builder.create_dot = dot
    builder.binary_op, builder.unary_op = only_wider(binary), only_wider(unary)

    # ---- range()
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, *scope: Any) -> None:  # before Triton 3.6 there is no scope
        patch(tensor, *scope)
        set_attribute = scope[0].set_attr if scope else setattr
        set_attribute(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).reshape(-1)[0]))

    interpreter._patch_lang_tensor = patch_tensor

    # ---- memory
    convert, run = interpreter._implicit_cvt, interpreter.GridExecutor.__call__
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def implicit_conversion(argument: Any) -> Any:
        if hasattr(argument, "data_ptr"):
            memory.add(argument)
        elif hasattr(argument, "base"):  # a tensor descriptor
            memory.add(argument.base)
        return convert(argument)

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        memory.check("load", pointers, mask.data)
        return load(self, pointers, mask, *rest, **named)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        addresses = memory.check("store", pointers, mask.data)
        if pointers.data.size > 1:  # one number may come from every program: a report
            memory.stored.append(addresses)
        return store(self, pointers, value, mask, *rest, **named)

    def atomic_rmw(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.check("atomic", pointers, mask.data)
        return atomic(self, operation, pointers, value, mask, *rest)

    def call(self: Any, *arguments: Any, **named: Any) -> None:
        memory.__init__()  # type: ignore[misc]
        run(self, *arguments, **named)
        memory.check_stored()

    interpreter._implicit_cvt = implicit_conversion
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.create_atomic_rmw = atomic_rmw
    interpreter.GridExecutor.__call__ = call


def widen() -> None:
    """Has every index computed in 64 bits, as of tensors beyond 2³¹ elements; before kernels are imported."""
    import triton.language as tl

    from fastops.backends.triton import runtime

    runtime.index_type = lambda *numbers: tl.int64


if IS_ON:
    repair()
    if os.environ.get("FASTOPS_TEST_WIDE") == "1":
        widen()
