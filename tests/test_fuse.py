"""Fusing layers: batch norm with what follows it (in training too), and into convolutions for inference."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastops
from tests.networks import NETWORKS


class Block(nn.Module):
    """A residual block as ResNet has it: one ReLU module called twice, an addition in place."""

    def __init__(self, downsample: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Layers(nn.Module):
    """Layers for a forward that a test gives."""

    def __init__(self, forward: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.other = nn.Conv2d(4, 4, 1)
        self.function = forward
        self.calls, self.seen = 0, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def counting(m: Layers, x: Tensor) -> Tensor:
    m.calls += 1
    return m.relu(m.bn(m.conv(x)))


def listing(m: Layers, x: Tensor) -> Tensor:
    m.seen.append(x)
    return m.relu(m.bn(m.conv(x)))


def changing_the_other_term(m: Layers, x: Tensor) -> Tensor:
    other = m.other(x).detach()
    y = m.bn(m.conv(x)) + other
    other.mul_(0)
    return m.relu(y)


def subtracting_in_place(m: Layers, x: Tensor) -> Tensor:
    y = m.other(x)
    y += m.bn(m.conv(x))
    return y.relu()


def using_its_input(m: Layers, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.bn(y)
    return (z + y.neg()).relu()


# (what the forward does, what is fused in convert, whether the batch norm is folded in fuse)
FORWARDS: list[tuple[Callable[[Layers, Tensor], Tensor], str, bool]] = [
    (lambda m, x: m.relu(m.bn(m.conv(x))), "ReLU", True),
    (lambda m, x: F.relu(m.bn(m.conv(x))), "ReLU", True),
    (lambda m, x: F.relu(m.bn(m.conv(x)), inplace=True), "ReLU", True),
    (lambda m, x: torch.relu(m.bn(m.conv(x))), "ReLU", True),
    (lambda m, x: m.bn(m.conv(x)).relu_(), "ReLU", True),
    (lambda m, x: m.bn(m.conv(x)) + x, "addition", True),
    (lambda m, x: torch.add(x, m.bn(m.conv(x))).relu(), "addition and ReLU", True),
    (lambda m, x: m.bn(m.conv(x)).add_(m.other(x)).relu(), "addition and ReLU", True),
    (lambda m, x: F.relu(m.bn(m.conv(x)) + x.mean((2, 3), keepdim=True)), "addition and ReLU", True),
    (lambda m, x: torch.add(x, m.bn(m.conv(x)), alpha=2), "", True),  # not a plain addition
    (subtracting_in_place, "", True),  # changes the other term
    (using_its_input, "", False),  # the norm's input has a later user, who might change it
    (lambda m, x: m.bn(m.conv(x)).sigmoid(), "", True),
    (lambda m, x: (lambda y: y.relu() + y)(m.bn(m.conv(x))), "", True),  # the norm's result has two users
    (lambda m, x: m.relu(m.bn(m.bn(m.conv(x)))), "", False),  # a layer called twice
    (lambda m, x: m.relu(m.bn(x)), "ReLU", False),  # no convolution before it
    (lambda m, x: F.dropout(m.relu(m.bn(m.conv(x))), 0.5, m.training), "", False),  # two graphs
    (lambda m, x: m.relu(m.bn(m.conv(x))) if x.sum() > 0 else x, "", False),  # torch.fx cannot trace it
    (counting, "", False),  # does something besides
    (listing, "", False),  # the same, out of sight of the attributes' identities
    (changing_the_other_term, "", True),  # between the addition and the ReLU
]  # fmt: skip


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients, and the state afterwards."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)  # for dropout
    y = model(x)
    model.zero_grad()
    y.square().sum().backward()
    return [
        y,
        x.grad,
        *(p.grad for p in model.parameters() if p.grad is not None),
        *model.state_dict().values(),
    ]  # type: ignore[list-item]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("forward", "fused", "folded"), FORWARDS, ids=map(str, range(len(FORWARDS))))
def test_forwards(forward: Callable[[Layers, Tensor], Tensor], fused: str, folded: bool) -> None:
    torch.manual_seed(0)
    model = Layers(forward).double()
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    ours = copy.deepcopy(model)
    report = fastops.convert(ours, fuse=True)
    assert report.fused == ({"bn": fused} if fused else {})
    assert ours.state_dict().keys() == model.state_dict().keys()
    for training in (True, False):
        model.train(training), ours.train(training)
        assert_close(results(ours, x), results(model, x))
    fastops.revert(ours)
    assert type(ours) is Layers and type(ours.bn) is nn.BatchNorm2d
    assert_close(results(ours, x), results(model, x))
    inference = fastops.fuse(model.eval())
    assert isinstance(inference.bn, nn.Identity) == folded
    torch.testing.assert_close(inference(x), model(x))


@pytest.mark.parametrize("downsample", [False, True])
def test_residual_block(downsample: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(downsample), Block()).double()
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    ours = copy.deepcopy(model)
    report = fastops.convert(ours, fuse=True)
    assert report.fused == {
        f"{i}.bn{k}": ("ReLU", "addition and ReLU")[k - 1] for i in (0, 1) for k in (1, 2)
    }
    assert "0.bn2: fused with the addition and ReLU after it" in str(report)
    assert isinstance(ours[0], Block) and repr(ours[0]).startswith("Block(")
    assert_close(results(ours, x), results(model, x))
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    expected = results(model, x)
    for other in copies:
        assert_close(results(other, x), expected)
    compiled = torch.compile(copy.deepcopy(ours), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), ours(x))


def test_what_is_left_alone() -> None:
    """Hooks and parametrizations on a layer keep it as it is; the report says what was fused."""
    for spoil in (
        lambda m: m.bn.register_forward_hook(lambda *_: None),
        lambda m: m.relu.register_forward_pre_hook(lambda *_: None),
        lambda m: torch.nn.utils.parametrize.register_parametrization(m.bn, "weight", nn.Identity()),
    ):
        model = Layers(lambda m, x: m.relu(m.bn(m.conv(x))))
        spoil(model)
        assert fastops.convert(model, fuse=True).fused == {}
    assert fastops.convert(Layers(lambda m, x: m.relu(m.bn(m.conv(x)))), exclude="bn", fuse=True).fused == {}


def test_tracing_leaves_nothing() -> None:
    model = Layers(listing)
    fastops.convert(model, fuse=True)
    assert model.seen == []


def test_a_convolution_with_two_owners() -> None:
    """Detection heads share convolutions between levels that have batch norms of their own."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(4)), nn.Sequential(conv, nn.BatchNorm2d(4)))
    x = torch.randn(3, 4, 6, 5)
    model(x)  # some statistics
    model.eval()
    torch.testing.assert_close(fastops.fuse(model)(x), model(x))


def test_a_layer_called_by_somebody_else() -> None:
    """Not by the module that it belongs to, which calls it too."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.bn = Layers(lambda m, x: m.relu(m.bn(m.conv(x)))), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.bn(self.inner.conv(x))

    torch.manual_seed(0)
    model, x = Outer(), torch.randn(3, 4, 6, 5)
    model(x)
    model.eval()
    torch.testing.assert_close(fastops.fuse(model)(x), model(x))


def test_fuse_keeps_the_model() -> None:
    model = Block().eval()
    before = copy.deepcopy(model.state_dict())
    fused = fastops.fuse(model)
    assert type(model.bn1) is nn.BatchNorm2d
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert fused.conv1.activation == "relu" and fused.conv2.activation is None  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="evaluation mode"):
        fastops.fuse(model.train())
    with pytest.raises(TypeError, match="Module"):
        fastops.fuse(torch.ones(1))  # type: ignore[arg-type]


def test_fuse_transposed_convolutions() -> None:
    torch.manual_seed(0)
    for groups, folded in ((1, True), (2, False)):
        model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=groups), nn.BatchNorm2d(6), nn.ReLU())
        x = torch.randn(2, 4, 5, 5)
        model(x)  # some statistics
        model.eval()
        fused = fastops.fuse(model)
        assert isinstance(fused[1], nn.Identity) == folded  # type: ignore[index]
        torch.testing.assert_close(fused(x), model(x))


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_networks(network: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    ours = copy.deepcopy(model)
    report = fastops.convert(ours, fuse=True)
    has_norms = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert bool(report.fused) == has_norms
    y = model(x)
    torch.testing.assert_close(ours(x), y)
    model.eval()
    with torch.no_grad():
        fused = fastops.fuse(model)
        left = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
        # DeepLab calls its backbone's first layers by a method other than forward: those stay.
        assert left == (["backbone.bn1"] if network == "DeepLabV3" else [])
        torch.testing.assert_close(fused(x), model(x))
