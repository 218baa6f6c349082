"""Operations for torch's FlopCounterMode, whose module is not imported for that: it imports Triton, which
is slow, and turns the GIL of a free-threaded Python on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"
_formulas: list[tuple[Any, Callable[..., int]]] = []


def register(op: Any, formula: Callable[..., int]) -> None:
    """What FlopCounterMode is to count for a call of an op of torch's library, from now on or from when it is
    imported: formula(*arguments, out_shape=…), with shapes for tensors."""
    _formulas.append((op, formula))
    counter = sys.modules.get(_COUNTER)
    if counter is not None:
        counter.register_flop_formula(op)(formula)


class _Finder(MetaPathFinder):
    """Finds the counter's module as usual, and makes its loader register the formulas."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _COUNTER else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            for op, formula in _formulas:
                module.register_flop_formula(op)(formula)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# (It stays: who removes it while another thread imports something makes that thread miss a finder.)
sys.meta_path.insert(0, _Finder())
