"""convert and revert: what is swapped, what is left and why, and what must survive a swap."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, parametrize

import fastops
from fastops.convert import BACK, SWAPS


def needs(*kinds: type[nn.Module]) -> pytest.MarkDecorator:
    """Skips a test while fastops has no layer for one of the classes."""
    missing = [k.__name__ for k in kinds if k not in SWAPS]
    return pytest.mark.skipif(bool(missing), reason=f"fastops has no {', '.join(missing)}")


class Block(nn.Module):
    """Two pools of one class, one of another, and a layer that fastops has nothing for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.AvgPool2d(3, 1, 1)
        self.inner = nn.Sequential(nn.AvgPool2d(2), nn.ReLU())
        self.head = nn.AdaptiveAvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.first(x)))


def kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(module) for name, module in model.named_modules()}


def test_in_place_and_back() -> None:
    model = Block()
    before, objects, text = kinds(model), dict(model.named_modules()), repr(model)
    x = torch.randn(2, 3, 9, 11)
    expected = model(x)
    report = fastops.convert(model)
    assert report.swapped == {
        "first": "AvgPool2d",
        "inner.0": "AvgPool2d",
        "head": "AdaptiveAvgPool2d",
    }
    assert report.left == {}
    assert report.unknown == {"ReLU": 1}
    assert type(model.first) is fastops.AvgPool2d and isinstance(model.first, nn.AvgPool2d)
    assert all(objects[name] is module for name, module in model.named_modules())
    assert repr(model) == text
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert fastops.revert(model) is model
    assert kinds(model) == before
    assert torch.equal(model(x), expected)


def test_a_layer_by_itself() -> None:
    layer = nn.AvgPool2d(2)
    report = fastops.convert(layer)
    assert report.swapped == {"": "AvgPool2d"}
    assert "(the model itself): AvgPool2d → fastops.AvgPool2d" in str(report)


def test_every_class_is_swapped_and_reverted() -> None:
    for theirs, ours in SWAPS.items():
        assert ours.__bases__ == (theirs,), "a layer derives from torch's own class"
        assert ours.__name__ == theirs.__name__
        assert getattr(fastops, ours.__name__) is ours
        assert BACK[ours] is theirs


@pytest.mark.parametrize(
    ("include", "swapped"),
    [
        (["first"], {"first"}),
        ("first", {"first"}),
        (["inner"], {"inner.0"}),
        ([""], {"first", "inner.0", "head"}),
        ([nn.AvgPool2d], {"first", "inner.0"}),
        (nn.AvgPool2d, {"first", "inner.0"}),
        ([nn.AdaptiveAvgPool2d, "inner"], {"head", "inner.0"}),
        ((item for item in ["first", "head"]), {"first", "head"}),
        (lambda name, module: "in" in name, {"inner.0"}),
        ([], set()),
    ],
    ids=[
        "name",
        "bare name",
        "parent",
        "root",
        "class",
        "bare class",
        "mixed",
        "generator",
        "function",
        "none",
    ],
)
def test_include(include: object, swapped: set[str]) -> None:
    report = fastops.convert(Block(), include=include)  # type: ignore[arg-type]
    assert set(report.swapped) == swapped
    assert report.left == dict.fromkeys({"first", "inner.0", "head"} - swapped, "not in include")


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["inner"], {"inner.0"}),
        ([nn.AvgPool2d], {"first", "inner.0"}),
        (lambda name, module: isinstance(module, nn.AdaptiveAvgPool2d), {"head"}),
    ],
    ids=["name", "class", "function"],
)
def test_exclude(exclude: object, left: set[str]) -> None:
    report = fastops.convert(Block(), exclude=exclude)  # type: ignore[arg-type]
    assert report.left == dict.fromkeys(left, "in exclude")
    assert set(report.swapped) == {"first", "inner.0", "head"} - left


def test_exclude_wins_over_include() -> None:
    report = fastops.convert(Block(), include=[nn.AvgPool2d], exclude=["first"])
    assert set(report.swapped) == {"inner.0"}


def test_names_match_whole_parts() -> None:
    model = nn.ModuleDict({"pool": nn.AvgPool2d(2), "pool2": nn.AvgPool2d(2)})
    assert set(fastops.convert(model, include=["pool"]).swapped) == {"pool"}


def test_a_name_that_is_not_there() -> None:
    model = Block()
    with pytest.raises(ValueError, match="no layer named 'middle'"):
        fastops.convert(model, exclude=["middle"])
    assert type(model.first) is nn.AvgPool2d, "nothing is swapped when a name is wrong"


def test_not_a_model() -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not dict"):
        fastops.convert({})  # type: ignore[arg-type]


def test_converting_twice() -> None:
    model = Block()
    fastops.convert(model)
    report = fastops.convert(model)
    assert report.swapped == {}
    assert report.left["first"] == "it is fastops.AvgPool2d already"


def test_hooks_and_mode_are_kept() -> None:
    model, calls = Block().eval(), []
    model.head.train()
    model.first.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.first.register_forward_hook(lambda *_: calls.append("after"))
    model.head.register_full_backward_hook(lambda *_: calls.append("backward"))
    fastops.convert(model)
    assert not model.training and not model.first.training and model.head.training
    model(torch.randn(1, 2, 8, 8, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "backward"]


def test_subclasses_are_left() -> None:
    class Special(nn.AvgPool2d):
        def forward(self, input: Tensor) -> Tensor:
            return -super().forward(input)

    class Ours(fastops.AvgPool2d):
        pass

    model = nn.Sequential(Special(2), Ours(2))
    report = fastops.convert(model)
    assert report.swapped == {}
    assert "Special is a subclass of AvgPool2d" in report.left["0"]
    assert type(model[0]) is Special and type(model[1]) is Ours


def test_a_replaced_forward_is_left() -> None:
    layer = nn.AvgPool2d(2)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    report = fastops.convert(layer)
    assert "forward is replaced" in report.left[""]


def test_a_module_used_twice() -> None:
    shared = nn.Sequential(nn.AvgPool2d(2))
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.AvgPool2d(2)})
    report = fastops.convert(model, include=["b"])
    assert set(report.swapped) == {"a.0"}, "the second name means the same module"
    assert model["a"] is model["b"] and type(shared[0]) is fastops.AvgPool2d


def test_copies_and_pickles() -> None:
    model = Block()
    fastops.convert(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kinds(other) == kinds(model)
        x = torch.randn(1, 2, 8, 8)
        assert torch.equal(other(x), model(x))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert kinds(torch.load(buffer, weights_only=False)) == kinds(model)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AvgPool2d(2)
    )


@needs(nn.Conv2d, nn.BatchNorm2d)
def test_parameters_and_optimizer() -> None:
    """The optimizer was made before the swap, and goes on after it."""
    model, reference = conv_net(), conv_net()
    before = dict(model.named_parameters()) | dict(model.named_buffers())
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (model, reference)]
    fastops.convert(model)
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert all(after[name] is t for name, t in before.items()) and after.keys() == before.keys()
    x = torch.randn(4, 3, 8, 8)
    for _ in range(3):
        for m, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    for (name, ours), theirs in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


@needs(nn.Conv2d, nn.BatchNorm2d)
def test_state_dict_both_ways() -> None:
    ours, theirs = conv_net(), conv_net()
    fastops.convert(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(1)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(conv_net().state_dict())
    assert torch.equal(theirs[0].weight, ours[0].weight + 1)


@needs(nn.Conv2d)
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized(norm: object) -> None:
    """The swap is beneath the class that parametrize injects, and parametrize can be undone after it."""
    torch.manual_seed(0)
    layer = norm(nn.Conv2d(3, 4, 3))  # type: ignore[operator]
    layer.eval()  # spectral_norm changes its estimate at each training step
    twin, x = copy.deepcopy(layer), torch.randn(2, 3, 6, 6)
    report = fastops.convert(layer)
    assert report.swapped == {"": "Conv2d"}
    assert isinstance(layer, fastops.Conv2d) and parametrize.is_parametrized(layer)
    assert not isinstance(twin, fastops.Conv2d), "a copy made before is not touched"
    y = layer(x)
    assert torch.allclose(y, twin(x), atol=1e-5)
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    clone = copy.deepcopy(layer)
    assert isinstance(clone, fastops.Conv2d) and torch.equal(clone(x), y)
    fastops.revert(clone)
    assert not isinstance(clone, fastops.Conv2d) and isinstance(layer, fastops.Conv2d)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is fastops.Conv2d
    assert torch.allclose(layer(x), y, atol=1e-6)


@needs(nn.Conv2d)
def test_parametrized_after_the_swap() -> None:
    layer = nn.Conv2d(3, 4, 3)
    fastops.convert(layer)
    parametrizations.weight_norm(layer)
    assert fastops.convert(layer).left == {"": "it is fastops.Conv2d already"}
    fastops.revert(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv2d


@needs(nn.Conv2d)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_weight_norm_by_hooks() -> None:
    layer = torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    x = torch.randn(1, 3, 5, 5)
    expected = layer(x)
    assert fastops.convert(layer).swapped == {"": "Conv2d"}
    assert torch.allclose(layer(x), expected, atol=1e-5)


@needs(nn.Conv2d)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_wait_for_their_first_input() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    assert "run the model once" in fastops.convert(model).left["0"]
    model(torch.randn(1, 3, 5, 5))
    assert fastops.convert(model).swapped == {"0": "Conv2d"}


@needs(nn.Conv2d)
def test_complex_weights_are_left() -> None:
    report = fastops.convert(nn.Conv2d(3, 4, 3, dtype=torch.complex64))
    assert report.left == {"": "weight is torch.complex64, which fastops has no kernels for"}


@needs(nn.Upsample)
def test_upsampling_of_other_ranks_is_left() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2, mode="trilinear"), nn.Upsample(scale_factor=2))
    report = fastops.convert(model)
    assert "mode 'trilinear' is not one of" in report.left["0"]
    assert set(report.swapped) == {"1"}


@needs(nn.Conv2d, nn.BatchNorm2d)
def test_fusing_conv_and_bn() -> None:
    model = conv_net().eval()
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 6, 6)
    expected = model[1](model[0](x))
    fastops.convert(model)
    fused = fuse_conv_bn_eval(model[0], model[1])
    assert type(fused) is fastops.Conv2d
    assert torch.allclose(fused(x), expected, atol=1e-5)


def test_every_layer_has_its_raw_op() -> None:
    """The table by which convert knows whether a device has kernels for a layer."""
    from fastops import _C
    from fastops.convert import RAW_OPS, SWAPS

    assert RAW_OPS.keys() == SWAPS.keys()
    assert all(hasattr(_C.cpu_baseline, op) for op in RAW_OPS.values())
