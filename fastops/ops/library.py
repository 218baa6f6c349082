"""Raw ops as ``torch.library`` ops, ``torch.ops.fastops.…``: for what looks at calls instead of running them.

torch.compile, export, FakeTensor, make_fx and FlopCounterMode see a call of such an op. Eager mode
does not: there an autograd Function calls its kernel directly, and pays for this file with two looks at
torch's state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastops import arguments
from fastops.ops import flops

_library = torch.library.Library("fastops", "DEF")
# Name → op.
OPS: dict[str, OpOfFunction] = {}

_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_unwrapped = torch._C._functorch.unwrap_if_dead
PLAIN = {Tensor, torch.nn.Parameter, type(None)}

# Compilers must not hand an op inputs of other strides than those that its fake has seen.
_TAGS = tuple(
    getattr(torch.Tag, name)
    for name in ("needs_exact_strides", "needs_fixed_stride_order")
    if hasattr(torch.Tag, name)
)[:1]


def is_plain(x: Tensor | None) -> bool:
    """Whether nobody looks on: a kernel may be called on x's memory."""
    return not (is_compiling() or _modes() or type(x) not in PLAIN or _tracing_state() is not None)


# Types of the fields of options as a schema has them. Sizes may be symbolic.
_SCHEMA: dict[Any, str] = {
    tuple[int, int]: "SymInt[2]",
    tuple[int, int] | None: "SymInt[2]?",
    tuple[float, float] | None: "float[2]?",
    int: "SymInt",
    int | None: "SymInt?",
    float: "float",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
    torch.memory_format | None: "MemoryFormat?",
}


F = TypeVar("F", bound=Callable[..., Any])


def cached(maxsize: int = 1024, typed: bool = False) -> Callable[[F], F]:
    """lru_cache for functions of options and sizes, which is not in the way of compilers: symbolic sizes are
    not remembered."""

    def decorate(function: F) -> F:
        remembered = lru_cache(maxsize, typed)(function)

        @wraps(function)
        def wrapper(*args: Any) -> Any:
            if is_compiling():
                return function(*args)
            try:
                return remembered(*args)
            except TypeError:  # a symbolic size does not hash, or a TypeError of the function's own
                return function(*args)

        return wrapper  # type: ignore[return-value]

    return decorate


def _cast(a: Any, dtype: torch.dtype) -> Any:
    """A floating-point tensor in a dtype of autocast; fp64 stays."""
    castable = isinstance(a, Tensor) and a.is_floating_point() and a.dtype is not torch.float64
    return a.to(dtype) if castable else a


class OpOfFunction:
    """A Function's forward as an op of the library.

    The op takes the Function's arguments with its options (a NamedTuple, in the argument ``spec``) spread
    out, and returns all its tensors; those that the Function leaves out (None) are empty.
    """

    def __init__(self, schema: str, function: type[torch.autograd.Function], options: Any) -> None:
        self.name = schema.partition("(")[0]
        self.function, self.options = function, options
        self.present = getattr(function, "present", None)
        names = list(inspect.signature(function.compute).parameters)  # type: ignore[attr-defined]
        self.place = names.index("spec") if options else len(names)
        self.count = len(options._fields) if options else 0
        fields = (
            [f"{_SCHEMA[kind]} {name}" for name, kind in get_type_hints(options).items()] if options else []
        )
        _library.define(schema.replace("OPTIONS", ", ".join(fields)), tags=_TAGS)
        qualified = f"fastops::{self.name}"
        for device in ("CPU", "CUDA"):
            _library.impl(self.name, self._kernel(function.compute), device)  # type: ignore[attr-defined]
        torch.library.register_fake(qualified, self._kernel(function.fake), lib=_library)  # type: ignore[attr-defined]
        if "backward" in vars(function):
            torch.library.register_autograd(
                qualified, self._backward, setup_context=self._setup_context, lib=_library
            )
        if "vmap" in vars(function):
            torch.library.register_vmap(qualified, self._vmap, lib=_library)
        self.overload = getattr(torch.ops.fastops, self.name).default
        if hasattr(function, "autocast"):
            for device in ("cpu", "cuda"):
                key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")
                _library.impl(self.name, self._autocast(device, key), f"Autocast{device.upper()}")
        if hasattr(function, "flops"):
            flops.register(getattr(torch.ops.fastops, self.name), self._flops)
        OPS[self.name] = self

    def __call__(self, *args: Any) -> Any:
        """The op's results for the Function's arguments."""
        results = self.overload(*self.spread(args))
        return self._without_absent(args, results)

    def spread(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The Function's arguments as the op takes them."""
        if self.options is None:
            return args
        i = self.place
        return (*args[:i], *args[i], *args[i + 1 :])

    def gathered(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The op's arguments as the Function takes them."""
        plain = tuple(tuple(a) if isinstance(a, (list, torch.Size)) else a for a in args)
        if self.options is None:
            return plain
        i, rest = self.place, self.place + self.count
        return (*plain[:i], self.options(*plain[i:rest]), *plain[rest:])

    def _without_absent(self, args: tuple[Any, ...], results: Any) -> Any:
        if self.present is None:
            return results
        return tuple(r if there else None for r, there in zip(results, self.present(*args), strict=True))

    def _kernel(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def kernel(*args: Any) -> Any:
            tensors = {f"argument {i}": a for i, a in enumerate(args) if isinstance(a, Tensor)}
            arguments.same_device(self.name, **tensors)
            gathered = self.gathered(args)
            self.function.check(self.name, *gathered)  # type: ignore[attr-defined]
            results = compute(*gathered)
            if not isinstance(results, tuple):
                return results
            like = next(t for t in (*args, *results) if isinstance(t, Tensor))
            return tuple(like.new_empty(0) if r is None else r for r in results)

        return kernel

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        args = self.gathered(inputs)
        ctx.present = None if self.present is None else self.present(*args)
        ctx.count = len(inputs)
        self.function.setup_context(ctx, args, self._without_absent(args, output))

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        present = ctx.present or (True,) * len(grads)
        grads = tuple(g if there else None for g, there in zip(grads, present, strict=True))
        found = self.function.backward(ctx, *grads)
        found = found if isinstance(found, tuple) else (found,)
        # Tensors come first in the arguments; nothing else has a gradient.
        tensors = found[: self.place]
        return (*tensors, *(None,) * (ctx.count - len(tensors)))

    def _autocast(self, device: str, key: Any) -> Callable[..., Any]:
        def kernel(*args: Any) -> Any:
            dtype = self.function.autocast(device)  # type: ignore[attr-defined]
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                return self.overload(*(_cast(a, dtype) for a in args))

        return kernel

    def _flops(self, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
        return self.function.flops(*self.gathered(shapes))  # type: ignore[attr-defined]

    def _vmap(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        gathered = self.gathered(args)
        dims = (*in_dims[: self.place], *(None,) * (len(gathered) - self.place))
        results, out_dims = self.function.vmap(info, dims, *gathered)  # type: ignore[attr-defined]
        return results, out_dims


def raw_op(
    schema: str, options: Any = None
) -> Callable[[type[torch.autograd.Function]], type[torch.autograd.Function]]:
    """Makes a Function's ``compute`` an op of the library as well, of this schema, in which OPTIONS stands
    for the fields of its argument ``spec``; and its ``forward``, which calls the kernel or the op.

    The Function has ``compute`` (on memory), ``fake`` (the same results without their elements), ``check``
    (raises where the op's arguments do not fit together; the first one is the op's name), and where results
    may be left out ``present``: which of them there are. It may have ``vmap``; ``flops``, given
    shapes for tensors; and ``autocast``: the dtype that autocast wants on a device. Several such decorators:
    an op for each kind of options.
    """

    def decorate(function: Any) -> Any:
        op = OpOfFunction(schema, function, options)
        kinds = dict(getattr(function, "ops", {}))
        kinds[options] = op
        function.ops = kinds
        compute, place = function.compute, op.place

        def dispatch(*args: Any) -> Any:
            return kinds[type(args[place]) if options else None](*args)

        def forward(*args: Any) -> Any:
            if _modes() or type(args[0]) not in PLAIN:
                return dispatch(*args)
            if _tracing_state() is not None:
                raise RuntimeError(
                    "fastops: torch.jit.trace does not see these kernels, and would record constants. "
                    "torch.export and torch.compile see them; or trace after fastops.revert(model)"
                )
            try:
                return compute(*args)
            except RuntimeError:
                # A function that torch.func.vjp returns is called with tensors that are still wrapped.
                alive = tuple(_unwrapped(a) if isinstance(a, Tensor) else a for a in args)
                if all(a is b for a, b in zip(alive, args, strict=True)):
                    raise
            return compute(*alive)

        function.dispatch, function.forward = staticmethod(dispatch), staticmethod(forward)
        return function

    return decorate
