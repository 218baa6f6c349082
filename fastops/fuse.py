"""Layers that follow each other made into one, found in what a module's forward does (by torch.fx).

Each module that has layers is traced by itself, with its children as black boxes: one that torch.fx cannot
trace leaves the others alone. It then gets a class of its own, derived from its old one, whose forward calls
the fused layers. The module stays the same object with the same parameters, names and ``state_dict``.
"""

from __future__ import annotations

import copy
import importlib
import operator
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from fastops import modules

_RELUS = {F.relu, torch.relu, torch.relu_, F.relu_}
_ADDS = {operator.add, operator.iadd, torch.add}


class _InPlace(fx.Proxy):
    """Records ``a += b`` and the like as what they are: torch.fx would make new tensors of them."""


def _in_place(name: str) -> Any:
    function = getattr(operator, name)

    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(_InPlace, f"__{_name}__", _in_place(_name))


class _Children(fx.Tracer):
    """Traces one module's forward; what its children do stays in them."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlace(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _attributes(module: nn.Module) -> list[Any]:
    """What a forward might set on its module, or put into a container there."""
    found: list[Any] = [*vars(module).items(), *module._buffers.items(), *module._parameters.items()]
    for value in vars(module).values():
        if isinstance(value, (list, set, dict)):
            found += [(None, inside) for inside in (value.values() if isinstance(value, dict) else value)]
    return found


def _trace(module: nn.Module) -> fx.Graph | None:
    """What the module's forward does, if it does the same in training and in evaluation, and nothing else."""
    graphs = []
    training, before = module.training, _attributes(module)
    containers = [(v, copy.copy(v)) for v in vars(module).values() if isinstance(v, (list, set, dict))]
    try:
        for mode in (True, False):
            module.training = mode
            graphs.append(_Children().trace(module))
    except Exception:  # whatever a forward does that torch.fx cannot follow
        return None
    finally:
        module.training = training
        after = _attributes(module)
        for container, content in containers:  # what a trace has put there is nobody's
            if len(container) != len(content):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
    changed = len(after) != len(before) or any(a[1] is not b[1] for a, b in zip(after, before, strict=True))
    if changed or str(graphs[0]) != str(graphs[1]):
        return None
    graph: fx.Graph = graphs[0]
    return graph


def batch_norm_add(
    norm: modules.BatchNorm2d, input: Tensor, residual: Tensor, activation: str | None
) -> Tensor:
    """activation(norm(input) + residual): in one kernel, unless the sum broadcasts or promotes."""
    alike = (
        input.shape == residual.shape and input.dtype == residual.dtype and input.device == residual.device
    )
    if alike:
        return norm(input, residual, activation=activation)  # type: ignore[no-any-return]
    total = norm(input) + residual
    return total if activation is None else F.relu(total)


class _Site:
    """Where a graph has a layer and what follows it: the nodes that go, and what stands in their place."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self.root = graph, root

    def is_used_after(self, x: Any, node: fx.Node, until: fx.Node | None = None) -> bool:
        """Whether somebody may change x after this node (and before another)."""
        order = {n: i for i, n in enumerate(self.graph.nodes)}
        end = len(order) if until is None else order[until]
        return any(order[node] < order[user] < end for user in x.users)

    def layer(self, node: Any, kind: type[nn.Module]) -> Any:
        """The layer that a node calls: of this class, plain, called nowhere else; else None."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or node.kwargs or len(node.args) != 1:
            return None
        layer = self.root.get_submodule(str(node.target))
        calls = [n for n in self.graph.nodes if n.op == "call_module" and n.target == node.target]
        if not isinstance(layer, kind) or len(calls) != 1 or is_hooked(layer) or is_parametrized(layer):
            return None
        return layer

    def relu(self, node: fx.Node | None) -> bool:
        """Whether a node is a ReLU."""
        if node is None:
            return False
        if node.op == "call_module":
            layer = self.root.get_submodule(str(node.target))
            return type(layer) is nn.ReLU and not is_hooked(layer)
        if node.op == "call_method":
            return node.target in ("relu", "relu_")
        return node.op == "call_function" and node.target in _RELUS

    def only_user(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 else None

    def added(self, node: fx.Node, to: fx.Node | None) -> Any:
        """The other term if `to` adds it to this node (in place only into this one); else None."""
        if to is None:
            return None
        function = to.op == "call_function" and to.target in _ADDS
        method = to.op == "call_method" and to.target in ("add", "add_")
        if not (function or method) or to.kwargs or len(to.args) != 2 or to.args[0] is to.args[1]:
            return None
        in_place = to.target is operator.iadd or to.target == "add_"
        first, second = to.args
        other = second if first is node else first
        if not isinstance(other, fx.Node) or (in_place and first is not node):
            return None
        return other


def is_hooked(layer: nn.Module) -> bool:
    """Whether somebody wants to see what goes in or comes out."""
    return any(
        (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    )


def _set_forward(module: nn.Module, graph: fx.Graph) -> None:
    """Gives the module a class whose forward is the graph's."""
    graph.lint()
    code = graph.python_code("self")
    module.__class__ = _class(type(module), code.src, dict(code.globals))


def _class(kind: type[nn.Module], source: str, names: dict[str, Any]) -> type[nn.Module]:
    """A class like another, but with this source's forward; its objects can be copied and pickled."""
    # Modules do not pickle; their names do.
    by_name = {k: v for k, v in names.items() if not isinstance(v, ModuleType)}
    imported = {k: v.__name__ for k, v in names.items() if isinstance(v, ModuleType)}
    scope = dict(names)
    exec(compile(source, f"<fastops.fuse of {kind.__name__}>", "exec"), scope)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _empty, (kind, source, by_name, imported), vars(self)

    members = {
        "forward": scope["forward"],
        "__reduce_ex__": reduce,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "fused_from": kind,
    }
    return type(kind.__name__, (kind,), members)


def _empty(
    kind: type[nn.Module], source: str, by_name: dict[str, Any], imported: dict[str, str]
) -> nn.Module:
    """An object of such a class, before it gets its attributes."""
    names = {**by_name, **{k: importlib.import_module(v) for k, v in imported.items()}}
    fused = _class(kind, source, names)
    return fused.__new__(fused)


def _parents(model: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Modules that have layers of a class among their children."""
    for name, module in model.named_modules():
        if any(isinstance(child, kind) for child in module.children()):
            yield name, module


# ---- training: batch norm with what follows it --------------------------------------------------


def fuse_batch_norms(model: nn.Module) -> dict[str, str]:
    """Batch norms of the package with the ReLU, addition, or both after them. Name → what was fused."""
    found: dict[str, str] = {}
    for name, module in _parents(model, modules.BatchNorm2d):
        graph = _trace(module)
        if graph is None:
            continue
        site, changed = _Site(graph, module), False
        for node in list(graph.nodes):
            norm = site.layer(node, modules.BatchNorm2d)
            if norm is None or norm.activation is not None:
                continue
            x, chain = node.args[0], [node]
            residual = site.added(node, site.only_user(node))
            if residual is not None:
                chain.append(site.only_user(node))
            activation = None
            if site.relu(site.only_user(chain[-1])):
                chain.append(site.only_user(chain[-1]))
                activation = "relu"
            if len(chain) == 1 or not isinstance(x, fx.Node) or site.is_used_after(x, node):
                continue
            if residual is not None and site.is_used_after(residual, chain[1], chain[-1]):
                continue
            with graph.inserting_before(chain[-1]):
                if residual is None:
                    new = graph.call_module(str(node.target), (x,), {"activation": activation})
                else:
                    layer = graph.get_attr(str(node.target))
                    new = graph.call_function(batch_norm_add, (layer, x, residual, activation))
            chain[-1].replace_all_uses_with(new)
            for gone in reversed(chain):
                graph.erase_node(gone)
            parts = [*(["addition"] if residual is not None else []), *(["ReLU"] if activation else [])]
            found[f"{name}.{node.target}".lstrip(".")] = " and ".join(parts)
            changed = True
        if changed:
            _set_forward(module, graph)
    return found


def unfuse(model: nn.Module) -> None:
    """Takes back what ``fuse_batch_norms`` did."""
    for module in model.modules():
        kind = vars(type(module)).get("fused_from")
        if kind is not None:
            module.__class__ = kind


# ---- inference: batch norm folded into convolutions ---------------------------------------------


def _called_elsewhere(model: nn.Module) -> set[int]:
    """The ids of layers that several modules own, or that one calls which is not their owner."""
    names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found = {which for which, count in names.items() if count > 1}
    for module in model.modules():
        graph = _trace(module) if any(True for _ in module.children()) else None
        for node in () if graph is None else graph.nodes:
            if node.op == "call_module" and "." in str(node.target):
                found.add(id(module.get_submodule(str(node.target))))
    return found


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a model for inference in which batch norms are folded into the convolutions before them, and
    ReLUs after those are computed with them.

    model: in evaluation mode (else ValueError). The copy's layers are fastops' where there are such; a
    convolution whose batch norm was folded has other weights and a bias, and ``nn.Identity`` stands where the
    batch norm was. Folded are Conv2d and ConvTranspose2d (of one group) with a BatchNorm2d that has running
    statistics, where neither is used elsewhere, has hooks or is parametrized, in modules that torch.fx can
    trace.
    """
    from fastops.convert import convert

    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module, not {type(model).__name__}")
    if any(m.training for m in model.modules()):
        raise ValueError("fuse: the model must be in evaluation mode: call model.eval()")
    model = copy.deepcopy(model)
    unfuse(model)
    convert(model)
    convolutions = (modules.Conv2d, modules.ConvTranspose2d)
    elsewhere = _called_elsewhere(model)
    for _, module in _parents(model, nn.BatchNorm2d):
        graph = _trace(module)
        if graph is None:
            continue
        site, changed = _Site(graph, module), False
        for node in list(graph.nodes):
            norm = site.layer(node, nn.BatchNorm2d)
            conv = None if norm is None else site.layer(node.args[0], convolutions)  # type: ignore[arg-type]
            if conv is None or norm.running_mean is None or len(node.args[0].users) != 1:
                continue
            if id(conv) in elsewhere or id(norm) in elsewhere:
                continue
            transposed = isinstance(conv, nn.ConvTranspose2d)
            if transposed and conv.groups != 1:
                continue
            if getattr(norm, "activation", None) is not None or getattr(conv, "activation", None) is not None:
                continue
            weight, bias = fuse_conv_bn_weights(
                *(
                    conv.weight,
                    conv.bias,
                    norm.running_mean,
                    norm.running_var,
                    norm.eps,
                    norm.weight,
                    norm.bias,
                ),
                transpose=transposed,
            )
            conv.weight, conv.bias = weight, bias
            node.replace_all_uses_with(node.args[0])
            module.set_submodule(str(node.target), nn.Identity())
            conv_node = node.args[0]
            graph.erase_node(node)
            relu = site.only_user(conv_node)
            if not transposed and site.relu(relu) and relu is not None:
                conv.activation = "relu"
                relu.replace_all_uses_with(conv_node)
                graph.erase_node(relu)
            changed = True
        if changed:
            _set_forward(module, graph)
    return model
