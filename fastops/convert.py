"""Swapping a model's layers for fastops' ones, in place, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastops import modules
from fastops.arguments import FLOATING
from fastops.backends import choose
from fastops.fuse import fuse_batch_norms, unfuse

# torch's class → fastops' class: the modules that the package has.
SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(modules, name).__base__: getattr(modules, name) for name in modules.__all__
}
# The raw op that a layer's forward runs: whether a device has it decides whether the layer is swapped.
RAW_OPS = {
    nn.Conv2d: "conv",
    nn.ConvTranspose2d: "conv_input_grad",
    nn.MaxPool2d: "max_pool",
    nn.AdaptiveMaxPool2d: "max_pool",
    nn.MaxUnpool2d: "max_unpool",
    nn.AvgPool2d: "avg_pool",
    nn.AdaptiveAvgPool2d: "avg_pool",
    nn.BatchNorm2d: "batch_norm",
    nn.SyncBatchNorm: "batch_norm_stats",
    nn.Upsample: "interpolate_weighted",
    nn.UpsamplingBilinear2d: "interpolate_weighted",
    nn.UpsamplingNearest2d: "interpolate_nearest",
}
BACK = {ours: theirs for theirs, ours in SWAPS.items()}
UPSAMPLE_MODES = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")  # of 4-d inputs

Item = str | type[nn.Module]
Selector = Callable[[str, nn.Module], bool] | Item | Iterable[Item]


@dataclass
class ConversionReport:
    """What ``convert`` did. Printing it gives a table."""

    swapped: dict[str, str] = field(default_factory=dict)  # name in the model → torch's class
    left: dict[str, str] = field(default_factory=dict)  # name in the model → why it was left
    # Classes of layers that fastops has nothing for → how many of them the model has.
    unknown: dict[str, int] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)  # name of a batch norm → what is computed with it

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} layers, left {len(self.left)}"]
        lines += [
            f"  {name or '(the model itself)'}: {kind} → fastops.{kind}"
            for name, kind in self.swapped.items()
        ]
        lines += [f"  {name or '(the model itself)'}: left: {why}" for name, why in self.left.items()]
        lines += [f"  {name}: fused with the {what} after it" for name, what in self.fused.items()]
        if self.unknown:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.unknown.items())
            lines.append(f"  no fastops layer for: {counts}")
        return "\n".join(lines)


def _selection(model: nn.Module, selector: Selector) -> Callable[[str, nn.Module], bool]:
    """The selector as a function. Names are looked up once: they may be any name of a shared module."""
    if callable(selector) and not isinstance(selector, type):
        return lambda name, module: bool(selector(name, module))
    items = (selector,) if isinstance(selector, (str, type)) else tuple(selector)
    classes = tuple(item for item in items if isinstance(item, type))
    below: set[int] = set()
    for name in items:
        if isinstance(name, str):
            try:
                below |= {id(m) for m in model.get_submodule(name).modules()}
            except AttributeError:
                raise ValueError(f"convert: the model has no layer named {name!r}") from None
    return lambda name, module: isinstance(module, classes) or id(module) in below


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """The layer's class, seen through the one that torch.nn.utils.parametrize puts before it."""
    kind = type(module)
    return kind.__base__ if is_parametrized(module) else kind  # type: ignore[return-value]


def _is_ours(module: nn.Module) -> bool:
    return _plain_class(module) in BACK


def _set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Makes the module a `kind`. A parametrized one gets a new class of its own, as torch gave it:
    copies of the module share the old one."""
    if is_parametrized(module):
        old = type(module)
        members = {k: v for k, v in vars(old).items() if k not in ("__dict__", "__weakref__")}
        kind = type(old.__name__, (kind,), members)
    module.__class__ = kind


def _obstacle(module: nn.Module, kind: type[nn.Module], device: str) -> str | None:
    """Why a module of a torch class that fastops has a layer for, or a subclass, cannot be swapped."""
    if kind in BACK:
        return f"it is fastops.{kind.__name__} already"
    if kind not in SWAPS:
        full_name = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            return f"{full_name} takes its class from its first input: run the model once, then convert"
        base = next(base for base in SWAPS if isinstance(module, base))
        return f"{full_name} is a subclass of {base.__name__}, which may compute something else"
    if "forward" in vars(module):
        return "its forward is replaced on the object, so a change of class would do nothing"
    for name, p in module.named_parameters(recurse=False):
        if p.dtype not in FLOATING:
            return f"{name} is {p.dtype}, which fastops has no kernels for"
    try:
        choose(RAW_OPS[kind], device)
    except NotImplementedError:
        return f"the model is on {device}, which fastops has no {RAW_OPS[kind]} kernel for"
    mode = getattr(module, "mode", None)
    if isinstance(module, nn.Upsample) and mode not in UPSAMPLE_MODES:
        return f"mode {mode!r} is not one of {', '.join(UPSAMPLE_MODES)}"
    return None


def convert(
    model: nn.Module,
    include: Selector | None = None,
    exclude: Selector | None = None,
    *,
    fuse: bool = False,
) -> ConversionReport:
    """Swaps every supported torch layer of a model for fastops' one, in place.

    The layers stay the same objects, so parameters, buffers, hooks, names, train/eval state and
    references held elsewhere (optimizers, ties) are untouched: only their class changes.

    include, exclude: which layers to swap or to leave: a function of (name, module), or names (a name
    covers what lies below it) and classes. By default every supported layer is swapped.
    fuse: also computes each BatchNorm2d with the addition, the ReLU, or both that follow it in a module's
    forward, where torch.fx can trace that: the module gets a class of its own with another forward.
    Parameters, names and ``state_dict`` stay; it works in training, too. (For inference see
    ``fastops.fuse``.) A hook or parametrization on a layer keeps it as it is.
    Raises ValueError for a name that the model does not have, before anything is swapped.
    Returns a report of what was swapped and what was left, and why. ``revert`` undoes it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, not {type(model).__name__}")
    included = None if include is None else _selection(model, include)
    excluded = None if exclude is None else _selection(model, exclude)
    report, unknown = ConversionReport(), Counter[str]()
    device = next((p.device.type for p in model.parameters()), "cpu")
    for name, module in model.named_modules():
        kind = _plain_class(module)
        if not isinstance(module, tuple(SWAPS)):
            if kind.__module__.startswith("torch.nn.") and not any(True for _ in module.children()):
                unknown[kind.__name__] += 1
        elif included is not None and not included(name, module):
            report.left[name] = "not in include"
        elif excluded is not None and excluded(name, module):
            report.left[name] = "in exclude"
        elif (why := _obstacle(module, kind, device)) is not None:
            report.left[name] = why
        else:
            _set_class(module, SWAPS[kind])
            report.swapped[name] = kind.__name__
    report.unknown = dict(unknown)
    if fuse:
        report.fused = fuse_batch_norms(model)
    return report


def revert(model: nn.Module) -> nn.Module:
    """Gives every fastops layer of a model its torch class back, in place, and undoes ``convert(fuse=True)``.
    Returns the model.

    Raises ValueError for a layer with an activation, which torch's class would not apply; nothing is
    reverted then.
    """
    fused = [name for name, m in model.named_modules() if getattr(m, "activation", None) and _is_ours(m)]
    if fused:
        names = ", ".join(name or "(the model itself)" for name in fused)
        raise ValueError(
            f"revert: {names}: torch's layer has no activation. Set the layer's activation to None, and "
            "apply it after the layer, or leave the model as it is"
        )
    unfuse(model)
    for module in model.modules():
        if _is_ours(module):
            _set_class(module, BACK[_plain_class(module)])
    return model
