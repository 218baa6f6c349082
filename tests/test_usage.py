"""What textbooks of torch do with these layers, done with fastops' classes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations, parametrize, prune

import fastops
import fastops.functional as G


def needs(*names: str) -> pytest.MarkDecorator:
    """A test that is not generated before the package has these layers or functions."""
    missing = [n for n in names if not hasattr(fastops, n) and not hasattr(G, n)]
    return pytest.mark.skipif(bool(missing), reason=f"fastops has no {', '.join(missing)} yet")


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def block(lib: Any, c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(lib.Conv2d(c_in, c_out, 3, padding=1), lib.BatchNorm2d(c_out), nn.ReLU())


class VGG(nn.Module):
    """Layers from a list of widths with 'M' for pooling, kept in a ModuleList."""

    def __init__(self, lib: Any, plan: tuple[int | str, ...] = (8, "M", 16, 16, "M"), c: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for width in plan:
            if width == "M":
                self.layers.append(lib.MaxPool2d(kernel_size=2, stride=2))
            else:
                self.layers += [lib.Conv2d(c, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                c = int(width)
        self.head = lib.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Linear(c * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.classifier(torch.flatten(self.head(x), 1))


def same_weights(make: Callable[[Any], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The network with fastops' layers and with torch's, equal parameters."""
    torch.manual_seed(0)
    ours = make(fastops)
    theirs = make(nn)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# ---- networks -----------------------------------------------------------------------------------


@needs("Conv2d", "MaxPool2d")
def test_vgg_from_a_list() -> None:
    ours, theirs = same_weights(VGG)
    x = images(2, 3, 16, 16)
    close(ours(x), theirs(x))
    assert [type(m).__name__ for m in ours.layers] == [type(m).__name__ for m in theirs.layers]
    assert repr(ours) == repr(theirs)


@needs("Conv2d", "BatchNorm2d")
def test_conv_bn_relu_trains_like_torch() -> None:
    ours, theirs = same_weights(lambda lib: nn.Sequential(block(lib, 3, 6), block(lib, 6, 4)))
    x = images(4, 3, 9, 9)
    for net in (ours, theirs):
        sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            sgd.zero_grad()
            net(x).square().mean().backward()
            sgd.step()
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@needs("Conv2d", "BatchNorm2d")
@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop]
)
def test_optimizers(optimizer: Any) -> None:
    ours, _ = same_weights(lambda lib: block(lib, 3, 4))
    x = images(4, 3, 8, 8)
    before = [p.clone() for p in ours.parameters()]
    opt = optimizer(ours.parameters(), lr=0.01)
    loss = ours(x).square().mean()
    loss.backward()
    opt.step()
    assert ours(x).square().mean() < loss
    # The bias of a convolution before batch norm has no gradient but rounding.
    moved = [not torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True)]
    assert moved[0] and moved[2] and moved[3]


@needs("MaxPool2d", "MaxUnpool2d")
def test_unpool_on_one_to_sixteen() -> None:
    pool = fastops.MaxPool2d(2, stride=2, return_indices=True)
    unpool = fastops.MaxUnpool2d(2, stride=2)
    x = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    y, indices = pool(x)
    assert y.tolist() == [[[[6, 8], [14, 16]]]]
    assert indices.tolist() == [[[[5, 7], [13, 15]]]]
    assert unpool(y, indices).tolist() == [[[[0, 0, 0, 0], [0, 6, 0, 8], [0, 0, 0, 0], [0, 14, 0, 16]]]]
    wide = unpool(y, indices, output_size=torch.Size([1, 1, 5, 5]))
    assert torch.equal(wide, nn.MaxUnpool2d(2, stride=2)(y, indices, output_size=[1, 1, 5, 5]))
    # The indices now lie in rows of five.
    assert wide.flatten().nonzero().flatten().tolist() == [5, 7, 13, 15]


@needs("Conv2d")
def test_dilated_3x3_is_the_5x5_it_spans() -> None:
    dilated = fastops.Conv2d(2, 3, 3, dilation=2, padding=2)
    spanned = fastops.Conv2d(2, 3, 5, padding=2)
    with torch.no_grad():
        spanned.weight.zero_()
        spanned.weight[..., ::2, ::2] = dilated.weight
        spanned.bias.copy_(dilated.bias)
    x = images(2, 2, 9, 9)
    close(dilated(x), spanned(x))


@needs("Conv2d")
def test_convolution_of_a_constant_is_known() -> None:
    conv = fastops.Conv2d(1, 1, 3, bias=False)
    conv.weight = nn.Parameter(torch.ones(1, 1, 3, 3))
    assert torch.equal(conv(torch.ones(1, 1, 5, 5)), torch.full((1, 1, 3, 3), 9.0))


@needs("Conv2d")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(mode: str) -> None:
    make = lambda lib: lib.Conv2d(2, 3, 3, padding=(1, 2), padding_mode=mode)  # noqa: E731
    ours, theirs = same_weights(make)
    close(ours(images(2, 2, 6, 7)), theirs(images(2, 2, 6, 7)))


@needs("BatchNorm2d")
@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_running_statistics(momentum: float | None) -> None:
    """(1 − m)·old + m·observed, with the unbiased variance; momentum None is the plain average."""
    bn = fastops.BatchNorm2d(3, momentum=momentum)
    mean, var = torch.zeros(3), torch.ones(3)
    for step in range(1, 5):
        x = images(4, 3, 5, 5) * step + step
        m = 1 / step if momentum is None else momentum
        bn(x)
        mean = (1 - m) * mean + m * x.mean((0, 2, 3))
        var = (1 - m) * var + m * x.transpose(0, 1).reshape(3, -1).var(1, unbiased=True)
        assert bn.num_batches_tracked == step
    close(bn.running_mean, mean)
    close(bn.running_var, var)
    bn.eval()
    frozen = bn.running_mean.clone()
    y = bn(x)
    close(y, (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + bn.eps).sqrt())
    assert torch.equal(bn.running_mean, frozen)
    bn.reset_running_stats()
    assert bn.running_mean.eq(0).all() and bn.num_batches_tracked == 0


@needs("BatchNorm2d")
def test_batch_norm_without_statistics_or_parameters() -> None:
    x = images(4, 3, 5, 5)
    plain = fastops.BatchNorm2d(3, affine=False, track_running_stats=False)
    assert not list(plain.parameters()) and not list(plain.buffers())
    close(plain.eval()(x), nn.BatchNorm2d(3, affine=False, track_running_stats=False).eval()(x))


@needs("Upsample", "ConvTranspose2d")
def test_decoder() -> None:
    def make(lib: Any) -> nn.Module:
        return nn.Sequential(
            lib.ConvTranspose2d(4, 3, 2, stride=2),
            lib.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            lib.UpsamplingNearest2d(scale_factor=2),
            lib.UpsamplingBilinear2d(size=(20, 24)),
            lib.AvgPool2d(2),
        )

    ours, theirs = same_weights(make)
    close(ours(images(2, 4, 3, 3)), theirs(images(2, 4, 3, 3)))
    assert repr(ours) == repr(theirs)


@needs("ConvTranspose2d")
def test_conv_transpose_output_size_undoes_a_strided_convolution() -> None:
    down = fastops.Conv2d(4, 6, 3, stride=2, padding=1)
    up = fastops.ConvTranspose2d(6, 4, 3, stride=2, padding=1)
    x = images(1, 4, 12, 12)
    assert up(down(x)).shape == (1, 4, 11, 11)
    assert up(down(x), output_size=x.size()).shape == x.shape


# ---- where inputs come from ---------------------------------------------------------------------


def inputs() -> dict[str, Tensor]:
    """(2, 3, 6, 6) inputs as other functions hand them on."""
    base = images(2, 3, 6, 6)
    wide = images(4, 6, 6, 12)
    return {
        "from_numpy": torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 6, 6), np.float32)),
        "from_numpy of a slice": torch.from_numpy(np.ones((2, 3, 6, 13), np.float32).cumsum(3)[..., 1::2]),
        "from_numpy transposed": torch.from_numpy(np.ones((6, 6, 3, 2), np.float32).cumsum(1).T),
        "arange": torch.arange(216.0).reshape(2, 3, 6, 6),
        "linspace": torch.linspace(-1, 1, 216).view(2, 3, 6, 6),
        "cat": torch.cat([base[:1], base[1:]], 0),
        "stack": torch.stack([base[0], base[1]]),
        "chunk": wide.chunk(2, 0)[1].chunk(2, 1)[1].chunk(2, 3)[1],
        "split": wide.split(2)[1].split([1, 3, 2], 1)[1].split(6, 3)[0],
        "transpose": base.transpose(2, 3),
        "permute": images(2, 6, 6, 3).permute(0, 3, 1, 2),
        "transpose of the batch": images(3, 2, 6, 6).transpose(0, 1),
        "squeeze": base.unsqueeze(0).squeeze(0),
        "unsqueeze": images(2, 6, 6).unsqueeze(1).expand(-1, 3, -1, -1),
        "expand": images(1, 1, 6, 1).expand(2, 3, 6, 6),
        "flip": base.flip(3),
        "narrow": images(2, 3, 8, 8).narrow(2, 1, 6).narrow(3, 2, 6),
        "unfold": images(2, 3, 11).unfold(2, 6, 1),
        "as_strided, overlapping": images(40).as_strided((2, 3, 6, 6), (7, 5, 3, 1)),
        "a storage offset": images(217)[1:].view(2, 3, 6, 6),
    }


CALLS: dict[str, tuple[str, Callable[[Any, Tensor], Any]]] = {
    "avg_pool2d": ("avg_pool2d", lambda f, x: f.avg_pool2d(x, 2)),
    "adaptive_avg_pool2d": ("adaptive_avg_pool2d", lambda f, x: f.adaptive_avg_pool2d(x, 4)),
    "max_pool2d": ("max_pool2d", lambda f, x: f.max_pool2d(x, 3, 2, 1)),
    "adaptive_max_pool2d": ("adaptive_max_pool2d", lambda f, x: f.adaptive_max_pool2d(x, (4, 2))),
    "conv2d": ("conv2d", lambda f, x: f.conv2d(x, images(4, 3, 3, 3), padding=1)),
    "conv_transpose2d": (
        "conv_transpose2d",
        lambda f, x: f.conv_transpose2d(x, images(3, 4, 3, 3), stride=2),
    ),
    "batch_norm": ("batch_norm", lambda f, x: f.batch_norm(x, None, None, training=True)),
    "interpolate nearest": ("interpolate", lambda f, x: f.interpolate(x, scale_factor=2)),
    "interpolate bilinear": ("interpolate", lambda f, x: f.interpolate(x, size=(5, 9), mode="bilinear")),
}


@pytest.mark.parametrize("source", inputs())
@pytest.mark.parametrize("call", [k for k, (op, _) in CALLS.items() if hasattr(G, op)])
def test_inputs_from(call: str, source: str) -> None:
    """Values, the gradient, and that neither the input nor its neighbours in memory are written to."""
    run = CALLS[call][1]
    x = inputs()[source]
    whole = x.untyped_storage().tolist() if x.numel() else []
    ours, theirs = run(G, x), run(F, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert x.untyped_storage().tolist() == whole
    grads = []
    for f in (G, F):
        leaf = inputs()[source].detach().clone(memory_format=torch.preserve_format).requires_grad_()
        run(f, leaf).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-2)


@needs("Conv2d", "MaxPool2d")
def test_gradient_flows_through_views_and_joins() -> None:
    """A convolution on parts of one tensor, joined again: the parts share memory."""

    def loss(f: Any, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        c, d = f.max_pool2d(x, 2).split(2, dim=1)
        joined = torch.cat([f.conv2d(a, w), f.conv2d(b, w)], 1)
        return joined.square().sum() + (torch.stack([c, d]).squeeze() * 2).sum()

    w, grads = images(3, 2, 3, 3), []
    for f in (G, F):
        x = images(2, 4, 6, 6).requires_grad_()
        loss(f, x).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-3)


# ---- modules as modules -------------------------------------------------------------------------


@needs("Conv2d", "BatchNorm2d", "MaxPool2d")
def test_module_tree() -> None:
    net = nn.Sequential()
    net.add_module("conv", fastops.Conv2d(3, 4, 3))
    net.add_module("bn", fastops.BatchNorm2d(4))
    net.add_module("pool", fastops.MaxPool2d(2))
    assert [name for name, _ in net.named_children()] == ["conv", "bn", "pool"]
    assert len(list(net.children())) == 3 and len(list(net.modules())) == 4
    assert [n for n, _ in net.named_parameters()] == ["conv.weight", "conv.bias", "bn.weight", "bn.bias"]
    assert [n for n, _ in net.named_buffers()] == [
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    ]
    assert sum(p.numel() for p in net.parameters()) == 4 * 3 * 9 + 4 + 8
    for child, base in zip(net.children(), (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d), strict=True):
        assert isinstance(child, base) and isinstance(child, getattr(fastops, base.__name__))
    assert net.eval().bn.training is False and net.train().bn.training is True
    net.apply(lambda m: nn.init.ones_(m.weight) if isinstance(m, nn.Conv2d) else None)
    assert net.conv.weight.eq(1).all()
    net.requires_grad_(False)
    assert not net(images(1, 3, 6, 6)).requires_grad


@needs("Conv2d", "BatchNorm2d")
def test_moving_and_casting() -> None:
    net = block(fastops, 3, 4).eval()
    x = images(1, 3, 6, 6)
    y = net(x)
    assert torch.equal(net.cpu().to("cpu")(x), y)
    assert net.double()(x.double()).dtype is torch.float64
    assert net.half()(x.half()).dtype is torch.float16
    assert net.to(torch.bfloat16)(x.bfloat16()).dtype is torch.bfloat16
    assert net[1].num_batches_tracked.dtype is torch.int64
    last = net.float().to(memory_format=torch.channels_last)
    assert last(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert net.to("meta")(x.to("meta")).shape == y.shape
    if torch.cuda.is_available():
        assert block(fastops, 3, 4).cuda()(x.cuda()).is_cuda


@needs("Conv2d", "BatchNorm2d", "MaxPool2d", "ConvTranspose2d")
def test_state_dict_both_ways(tmp_path: Any) -> None:
    def make(lib: Any) -> nn.Module:
        return nn.Sequential(block(lib, 3, 4), lib.MaxPool2d(2), lib.ConvTranspose2d(4, 2, 2))

    x = images(2, 3, 8, 8)
    for source, target in ((fastops, nn), (nn, fastops)):
        a, b = make(source), make(target)
        a(x)  # moves the running statistics
        torch.save(a.state_dict(), tmp_path / "net.pt")
        state = torch.load(tmp_path / "net.pt", weights_only=True)
        assert list(state) == list(b.state_dict()) and state._metadata == b.state_dict()._metadata
        assert str(b.load_state_dict(state)) == "<All keys matched successfully>"
        close(a.eval()(x), b.eval()(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        make(fastops).load_state_dict({})


@needs("Conv2d", "BatchNorm2d", "MaxPool2d")
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(way: str) -> None:
    net = nn.Sequential(block(fastops, 3, 4), fastops.MaxPool2d(2), fastops.AvgPool2d(2)).eval()
    if way == "deepcopy":
        other = copy.deepcopy(net)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(net))
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    x = images(2, 3, 9, 9)
    assert torch.equal(net(x), other(x)) and repr(net) == repr(other)
    assert {type(m) for m in net.modules()} == {type(m) for m in other.modules()}
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in other.parameters()}


@needs("Conv2d")
@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm]
)
def test_parametrizations(wrap: Any) -> None:
    torch.manual_seed(0)
    ours, theirs = same_weights(lambda lib: lib.Conv2d(3, 4, 3))
    torch.manual_seed(0)
    ours = wrap(ours)
    torch.manual_seed(0)
    theirs = wrap(theirs)
    theirs.load_state_dict(ours.state_dict())
    x = images(2, 3, 6, 6)
    a, b = ours.eval()(x), theirs.eval()(x)
    close(a, b)
    a.sum().backward(), b.sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)
    assert isinstance(ours, fastops.Conv2d) and isinstance(ours, nn.Conv2d)
    parametrize.remove_parametrizations(ours, "weight")
    close(ours(x), a)


@needs("Conv2d")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_of_old() -> None:
    ours, theirs = same_weights(lambda lib: nn.utils.weight_norm(lib.Conv2d(3, 4, 3)))
    close(ours(images(2, 3, 6, 6)), theirs(images(2, 3, 6, 6)))
    assert list(ours.state_dict()) == ["bias", "weight_g", "weight_v"]
    assert type(nn.utils.remove_weight_norm(ours)) is fastops.Conv2d


@needs("Conv2d", "BatchNorm2d")
def test_fuse_conv_bn_eval() -> None:
    conv, bn = fastops.Conv2d(3, 4, 3), fastops.BatchNorm2d(4)
    x = images(2, 3, 6, 6)
    for _ in range(3):
        bn(conv(x))
    conv.eval(), bn.eval()
    fused = fusion.fuse_conv_bn_eval(conv, bn)
    assert isinstance(fused, fastops.Conv2d)
    close(fused(x), bn(conv(x)))


@needs("Conv2d")
def test_hooks_and_pruning() -> None:
    conv, seen = fastops.Conv2d(3, 4, 3), []
    conv.register_forward_pre_hook(lambda m, args: seen.append("before"))
    conv.register_forward_hook(lambda m, args, y: y * 0)
    conv.register_full_backward_hook(lambda m, dx, dy: seen.append("backward"))
    y = conv(images(1, 3, 5, 5).requires_grad_())
    y.sum().backward()
    assert y.eq(0).all() and seen == ["before", "backward"]
    prune.l1_unstructured(conv, "weight", amount=0.5)
    assert conv(images(1, 3, 5, 5)).shape == (1, 4, 3, 3) and conv.weight.eq(0).sum() == 54


@needs("Conv2d", "MaxPool2d")
def test_a_parameter_in_place_of_the_weight() -> None:
    conv = fastops.Conv2d(1, 1, (1, 2), bias=False)
    conv.weight = nn.Parameter(torch.tensor([[[[1.0, -1.0]]]]))
    edge = torch.ones(6, 8)
    edge[:, 2:6] = 0
    y = conv(edge.reshape(1, 1, 6, 8))
    assert y[0, 0, 0].tolist() == [0, 1, 0, 0, 0, -1, 0]
    conv.weight.data[:] = 2.0
    conv.weight.data.mul_(2)
    assert conv(torch.ones(1, 1, 1, 2)).item() == 8


@needs("Conv2d", "BatchNorm2d", "MaxPool2d", "MaxUnpool2d", "interpolate", "ConvTranspose2d")
def test_deterministic_algorithms() -> None:
    """Every backward under torch's strictest setting, where several of torch's own CUDA ops refuse."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        grads = []
        for _ in range(2):
            torch.manual_seed(0)
            net = nn.Sequential(block(fastops, 3, 4), fastops.AdaptiveAvgPool2d(6))
            x = images(2, 3, 9, 9).requires_grad_()
            y, indices = G.max_pool2d(net(x), 2, return_indices=True)
            y = G.interpolate(G.max_unpool2d(y, indices, 2), scale_factor=1.5, mode="bilinear")
            y = G.conv_transpose2d(y, images(4, 2, 3, 3), stride=2)
            G.interpolate(G.adaptive_max_pool2d(y, 5), 8, mode="bicubic").square().sum().backward()
            grads.append([x.grad, *(p.grad for p in net.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    finally:
        torch.use_deterministic_algorithms(before)


@needs("Conv2d", "BatchNorm2d", "MaxPool2d")
def test_convert_keeps_the_answer() -> None:
    torch.manual_seed(0)
    net = VGG(nn)
    x = images(2, 3, 16, 16)
    before = net(x)
    parameters = [id(p) for p in net.parameters()]
    fastops.convert(net)
    assert all(isinstance(m, fastops.MaxPool2d) for m in net.layers if isinstance(m, nn.MaxPool2d))
    close(net(x), before)
    assert [id(p) for p in net.parameters()] == parameters
    fastops.revert(net)
    assert torch.equal(net(x), before)
