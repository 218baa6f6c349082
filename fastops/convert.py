"""Swapping a model's layers for fastops' ones, in place, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn

from fastops import modules

# torch's class → fastops' class: the modules that the package has.
SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(modules, name).__base__: getattr(modules, name) for name in modules.__all__
}

Selector = Callable[[str, nn.Module], bool] | Iterable[str | type[nn.Module]]


@dataclass
class ConversionReport:
    """What ``convert`` did. Printing it gives a table."""

    swapped: dict[str, str] = field(default_factory=dict)  # name in the model → torch's class
    left: dict[str, str] = field(default_factory=dict)  # name in the model → why it was left

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} layers, left {len(self.left)}"]
        lines += [
            f"  {name or '(the model itself)'}: {kind} → fastops.{kind}"
            for name, kind in self.swapped.items()
        ]
        lines += [f"  {name or '(the model itself)'}: left: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def _selects(selector: Selector, name: str, module: nn.Module) -> bool:
    if callable(selector):
        return bool(selector(name, module))
    return any(
        isinstance(module, s) if isinstance(s, type) else name == s or name.startswith(s + ".")
        for s in selector
    )


def convert(
    model: nn.Module, include: Selector | None = None, exclude: Selector | None = None
) -> ConversionReport:
    """Swaps every supported torch layer of a model for fastops' one, in place.

    The layers stay the same objects, so parameters, buffers, hooks, names, train/eval state and
    references held elsewhere (optimizers, ties) are untouched: only their class changes.

    include, exclude: which layers to swap or to leave: a function of (name, module), or names (a name
    covers what lies below it) and classes. By default every supported layer is swapped.
    Returns a report of what was swapped and what was left, and why. ``revert`` undoes it.
    """
    report = ConversionReport()
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in SWAPS:
            supported = next((base for base in SWAPS if isinstance(module, base)), None)
            if supported is not None and kind not in SWAPS.values():
                report.left[name] = (
                    f"{kind.__module__}.{kind.__qualname__} is a subclass of {supported.__name__}"
                )
        elif include is not None and not _selects(include, name, module):
            report.left[name] = "not in include"
        elif exclude is not None and _selects(exclude, name, module):
            report.left[name] = "in exclude"
        else:
            module.__class__ = SWAPS[kind]
            report.swapped[name] = kind.__name__
    return report


def revert(model: nn.Module) -> nn.Module:
    """Gives every fastops layer of a model its torch class back, in place. Returns the model."""
    back = {ours: theirs for theirs, ours in SWAPS.items()}
    for module in model.modules():
        if type(module) in back:
            module.__class__ = back[type(module)]
    return model
