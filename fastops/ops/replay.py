"""Calls made again without their checks: what a call has launched, the next call of the same signature
launches again.

A signature is all that a function of fastops.functional goes by: of tensors the shape, strides, dtype, device
and whether they want a gradient; of options type and value. When one comes for the second time, the call is
recorded once on the side, computing nothing, and becomes a *recipe*; from then on such a call costs the look
at its signature and the launch (or, where it is differentiated, the autograd Function). A recipe is made only
where every tensor in it is an argument, or was made by ``layout.empty_like`` and can be made again, and
it is used only where nobody looks on: no compiler, mode, transform, autocast or forced backend.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.overrides import has_torch_function

from fastops.backends import Recording, choose, is_forced, recorded
from fastops.ops.autograd import apply, written
from fastops.ops.library import PLAIN

Tensors = tuple[Tensor | None, ...]
Recipe = Callable[[Tensors], Any]
F = TypeVar("F", bound=Callable[..., Any])

_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state
_autocast = torch._C._is_any_autocast_enabled
_grad_mode = torch.is_grad_enabled

KEPT = 4096  # signatures of one function; when there are more, it starts again
_ONCE, _NEVER = "came once", "has no recipe"


def _places(wanted: Sequence[Any], known: Sequence[Any]) -> list[int] | None:
    """Where each of some tensors is among those known; None if one is not."""
    places = [next((i for i, k in enumerate(known) if k is t), -1) for t in wanted]
    return None if -1 in places else places


def _choosing(results: Any, result: Any) -> Callable[[Any], Any] | None:
    """Which of some results a result is, or its parts are; None if it is not of them."""
    if result is results:
        return lambda results: results
    if not isinstance(results, tuple):
        return None
    if not isinstance(result, tuple):
        place = next((i for i, r in enumerate(results) if r is result), None)
        return None if place is None else itemgetter(place)
    places = _places(result, results)
    return None if places is None else lambda results: tuple(results[i] for i in places)


def _launching(recording: Recording, arguments: Tensors, result: Any) -> Recipe | None:
    """A recipe that is one launch."""
    if len(recording.launches) != 1 or recording.more:
        return None
    op, params, used = recording.launches[0]
    made, first = recording.made, arguments[0]
    places = _places(used, [*arguments, *made, None])
    answer = _choosing(made[0] if len(made) == 1 else (*made, None), result)
    updated = _places(recording.written, arguments)
    if places is None or answer is None or updated is None or first is None:
        return None
    launcher = choose(op, first.device.type).launcher
    if launcher is None:
        return None
    fresh = [(t.shape, t.stride(), None if t.dtype is first.dtype else t.dtype) for t in made]
    if len(fresh) == 1 and fresh[0][2] is None and places == list(range(len(arguments) + 1)) and not updated:
        shape, stride, _ = fresh[0]

        def launch_into_one(tensors: Tensors) -> Any:
            y = tensors[0].new_empty_strided(shape, stride)  # type: ignore[union-attr]
            launcher(params, *tensors, y)
            return y

        return launch_into_one

    def launch(tensors: Tensors) -> Any:
        x = tensors[0]
        new = [x.new_empty_strided(s, t, dtype=d) for s, t, d in fresh]  # type: ignore[union-attr]
        known = (*tensors, *new, None)
        launcher(params, *[known[i] for i in places])
        for i in updated:
            written(tensors[i])  # type: ignore[arg-type]
        return answer(new[0] if len(new) == 1 else (*new, None))

    return launch


def _applying(recording: Recording, arguments: Tensors, result: Any) -> Recipe | None:
    """A recipe that is one Function, whose forward is one launch, if that is all."""
    if len(recording.functions) != 1:
        return None
    function, args, results = recording.functions[0]
    answer = _choosing(results, result)
    count = next((i for i, a in enumerate(args) if a is not None and not isinstance(a, Tensor)), len(args))
    places, rest = _places(args[:count], [*arguments, None]), args[count:]
    if answer is None or places is None or any(isinstance(a, Tensor) for a in rest):
        return None
    forward = _launching(recording, args[:count], results)
    if forward is not None:

        def launched(*args: Any) -> Any:
            return forward(args[:count])

        function = type(function.__name__, (function,), {"forward": staticmethod(launched)})

    def apply_again(tensors: Tensors) -> Any:
        known = (*tensors, None)
        return answer(apply(function, *[known[i] for i in places], *rest))

    return apply_again


def _learn(function: Callable[..., Any], tensors: Tensors, args: tuple[Any, ...], options: Any) -> Any:
    """What is known of a call after recording it: its recipe, or _NEVER."""
    given = [t for t in tensors if t is not None]
    if len({id(t) for t in given}) < len(given):
        return _NEVER
    # Without a graph: checkpoints and the like count what is saved, and are not to see this.
    with recorded(graph=False) as recording:
        result = function(*args, **options)
    differentiated = _grad_mode() and any(t.requires_grad for t in given)
    make = _applying if differentiated else _launching
    return make(recording, tensors, result) or _NEVER


def replayed(count: int, state: Callable[[Any], Any] | None = None) -> Callable[[F], F]:
    """For a function of fastops.functional whose first ``count`` arguments are tensors or None: its calls by
    recipe. state: what else it goes by, given the first of them."""

    def decorate(function: F) -> F:
        recipes: dict[Any, Any] = {}

        @wraps(function)
        def wrapper(*args: Any, **options: Any) -> Any:
            if (
                is_compiling()
                or _dispatch_modes()
                or _transforms()
                or forward_ad._current_level >= 0
                or is_forced()
                or _autocast()
                or _tracing() is not None
                or has_torch_function(args[:1])  # or a mode of torch functions
            ):
                return function(*args, **options)
            tensors = args[:count]
            signature: list[Any] = []
            grads = _grad_mode()
            try:
                # Bytes, because they differ where 1, 1.0 and True do. (ValueError: a number of another kind.)
                signature.append(marshal.dumps((args[count:], options), 2))
                for t in tensors:
                    if t is None:
                        signature.append(None)
                    elif type(t) in PLAIN and not t.is_neg() and not t._is_zerotensor():  # as memory has it
                        signature += t.shape, t.stride(), t.dtype, t.device, grads and t.requires_grad
                    else:
                        return function(*args, **options)
            except (ValueError, RuntimeError):  # sparse tensors have no strides
                return function(*args, **options)
            if state is not None and tensors[0] is not None:
                signature.append(state(tensors[0]))
            key = tuple(signature)
            recipe = recipes.get(key)
            if recipe is None or recipe is _ONCE or recipe is _NEVER:
                result = function(*args, **options)
                if recipe is not _NEVER:
                    if len(recipes) >= KEPT:
                        recipes.clear()
                    recipes[key] = _ONCE
                    if recipe is not None:
                        # Without memory for its results once more, nothing is learnt; the call is done.
                        with suppress(RuntimeError, MemoryError):
                            recipes[key] = _learn(function, tensors, args, options)
                return result
            return recipe(tensors)

        return wrapper  # type: ignore[return-value]

    return decorate
