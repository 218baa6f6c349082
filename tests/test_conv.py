"""Convolution beyond what the cases say: a fused ReLU, each set of wanted gradients, torch's precision."""

from __future__ import annotations

import copy
import io
import pickle
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastops
import fastops.functional as G
from fastops.ops.conv import tf32_allowed
from tests.conftest import device_of
from tests.tolerance import assert_accurate, assert_same_layout

every_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
# Shapes of x and w, and options.
KINDS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "dense": ((2, 8, 9, 7), (16, 8, 3, 3), dict(padding=1)),
    "strided": ((1, 3, 12, 11), (8, 3, 3, 3), dict(stride=2, padding=1)),
    "grouped": ((2, 6, 7, 7), (9, 2, 3, 3), dict(padding=1, groups=3)),
    "depthwise": ((2, 8, 9, 10), (8, 1, 3, 3), dict(padding=1, groups=8)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def operands(kind: str, dtype: torch.dtype, channels_last: bool, backend: str) -> tuple[Tensor, ...]:
    """x, w and b."""
    x_shape, w_shape, _ = KINDS[kind]
    generator = torch.Generator().manual_seed(5)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, w, b = (
        torch.randn(s, generator=generator).to(device_of(backend), dtype)
        for s in (x_shape, w_shape, w_shape[:1])
    )
    return x.contiguous(memory_format=memory_format).requires_grad_(), w.requires_grad_(), b.requires_grad_()


def composition(x: Tensor, w: Tensor, b: Tensor | None, **options: Any) -> Tensor:
    return F.relu(F.conv2d(x, w, b, **options))


@every_layout
@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_relu(kind: str, dtype: torch.dtype, channels_last: bool, backend: str) -> None:
    operands_ = operands(kind, dtype, channels_last, backend)
    options = KINDS[kind][2]
    for_torch = [t.detach().cpu().requires_grad_() for t in operands_]
    wide = [t.detach().double().requires_grad_() for t in for_torch]
    y, theirs = G.conv2d(*operands_, **options, activation="relu"), composition(*for_torch, **options)
    exact = composition(*wide, **options)
    assert_accurate(y.cpu(), theirs, exact, "y")
    assert_same_layout(y, theirs)
    assert 0.1 < (y == 0).float().mean() < 0.9
    # The same elements of dy count: where ours is zero.
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(6)).to(y)
    masked = dy.masked_fill(y <= 0, 0).cpu()
    ours = torch.autograd.grad(y, operands_, dy)
    theirs_ = torch.autograd.grad(F.conv2d(*for_torch, **options), for_torch, masked)
    exact_ = torch.autograd.grad(F.conv2d(*wide, **options), wide, masked.double())
    for name, o, t, e in zip(("dx", "dw", "db"), ours, theirs_, exact_, strict=True):
        assert_accurate(o.cpu(), t, e, name)


@every_layout
@every_kind
def test_gradcheck_with_relu(kind: str, channels_last: bool, backend: str) -> None:
    inputs = operands(kind, torch.float64, channels_last, backend)
    options = KINDS[kind][2]

    def function(*inputs: Tensor) -> Tensor:
        return G.conv2d(*inputs, **options, activation="relu")

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_relu_keeps_nan_and_its_gradient(backend: str) -> None:
    x = torch.tensor([1.0, -1.0, float("nan"), 0.0], device=device_of(backend)).view(1, 1, 1, 4)
    w = torch.ones(1, 1, 1, 1, device=x.device)
    x.requires_grad_()
    ours, theirs = G.conv2d(x, w, activation="relu"), composition(x, w, None)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=0)
    for y in (ours, theirs):
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert dx.flatten().tolist() == [1, 0, 1, 0]


# Shapes of x and w, and options.
BESIDE: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    **KINDS,
    "5 × 5, strided": ((1, 6, 12, 37), (6, 1, 5, 5), dict(padding=2, stride=2, groups=6)),
    "7 × 7": ((1, 3, 16, 13), (3, 1, 7, 7), dict(padding=3, groups=3)),
    "multiplied channels": ((2, 1, 6, 6), (3, 1, 3, 3), {}),
    "dilated": ((1, 4, 11, 9), (4, 1, 3, 3), dict(dilation=2, groups=4)),
}


@every_layout
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("with_dx", [False, True], ids=["dw", "dw, dx"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", BESIDE)
def test_weight_grad_beside_what_is_not_finite(
    kind: str, dtype: torch.dtype, with_dx: bool, bad: float, channels_last: bool, backend: str
) -> None:
    """A thread's run may end beyond dy's last column, with zeros there; x may go on, and 0 · ∞ is NaN."""
    x_shape, w_shape, options = BESIDE[kind]
    generator = torch.Generator().manual_seed(3)
    x, w = (torch.randn(s, generator=generator) for s in (x_shape, w_shape))
    x[0, 0, -1, -1] = x[0, -1, x_shape[2] // 2, 1] = x[0, 0, 0, x_shape[3] // 2] = bad
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    leaves = [t.to(device_of(backend), dtype).contiguous(memory_format=memory_format) for t in (x, w)]
    leaves[0].requires_grad_(with_dx), leaves[1].requires_grad_()
    y = G.conv2d(*leaves, **options)
    dy = torch.rand(y.shape, generator=generator).add_(0.5).to(y.device, dtype)
    found = torch.autograd.grad(y, leaves if with_dx else leaves[1:], dy)[-1].cpu()
    exact_w = w.double().requires_grad_()
    exact = torch.autograd.grad(F.conv2d(x.double(), exact_w, **options), exact_w, dy.cpu().double())[0]
    assert torch.equal(found.isfinite(), exact.isfinite())


@every_kind
@pytest.mark.parametrize(
    "wanted",
    [w for w in product([False, True], repeat=3) if any(w)],
    ids=lambda wanted: "".join(name for name, want in zip("xwb", wanted, strict=True) if want),
)
def test_only_the_wanted_gradients(kind: str, wanted: tuple[bool, ...], backend: str) -> None:
    """Each set of them is computed by other calls of the kernels, with the same result."""
    inputs = [
        t.detach().requires_grad_(want)
        for t, want in zip(operands(kind, torch.float32, True, backend), wanted, strict=True)
    ]
    options = KINDS[kind][2]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    y, theirs, exact = G.conv2d(*inputs, **options), F.conv2d(*inputs, **options), F.conv2d(*wide, **options)
    for t in (y, theirs, exact):
        t.sin().sum().backward(inputs=[i for i in (wide if t is exact else inputs) if i.requires_grad])
        if t is y:
            found = [None if i.grad is None else i.grad.clone() for i in inputs]
            for i in inputs:
                i.grad = None
    for name, o, i, e, want in zip(("dx", "dw", "db"), found, inputs, wide, wanted, strict=True):
        assert (o is not None) == want
        if o is not None:
            assert_accurate(o, i.grad, e.grad, name)


@every_layout
@every_kind
def test_second_derivatives_with_parts_left_out(kind: str, channels_last: bool, backend: str) -> None:
    """Gradients of one first gradient at a time, so that those of the others are not there."""
    inputs = operands(kind, torch.float64, channels_last, backend)
    options = KINDS[kind][2]
    y = G.conv2d(*inputs, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype).to(y.device)

    def second(module: Any, which: int) -> tuple[Tensor | None, ...]:
        leaf = dy.clone().requires_grad_()
        y = module.conv2d(*inputs, **options)
        first = torch.autograd.grad(y, inputs, leaf, create_graph=True)[which]
        return torch.autograd.grad(first.square().sum(), (leaf, *inputs), allow_unused=True)

    for which in range(3):
        for ours, theirs in zip(second(G, which), second(F, which), strict=True):
            # torch gives zeros where nothing depends, or None.
            ours = ours if ours is None or ours.any() else None
            theirs = theirs if theirs is None or theirs.any() else None
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="conv2d: activation 'gelu' is not supported"):
        G.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), activation="gelu")
    with pytest.raises(ValueError, match="Conv2d: activation 'gelu' is not supported"):
        fastops.Conv2d(1, 1, 1, activation="gelu")


def test_layer_with_relu() -> None:
    torch.manual_seed(0)
    layer, plain = fastops.Conv2d(3, 4, 3, activation="relu"), nn.Conv2d(3, 4, 3)
    assert repr(layer) == "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), activation='relu')"
    assert repr(fastops.Conv2d(3, 4, 3)) == repr(plain)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(layer(x), plain(x).relu())
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stored, weights_only=False),
    ):
        assert torch.equal(other(x), layer(x))
    model = nn.Sequential(layer)
    with pytest.raises(ValueError, match="activation"):
        fastops.revert(model)
    layer.activation = None
    fastops.revert(model)
    assert type(model[0]) is nn.Conv2d
    fastops.convert(model)
    assert model[0].activation is None


def test_precision_is_torchs() -> None:
    """Of fp32 on a GPU, and nothing else."""
    on_gpu = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    before = torch._C._get_cudnn_allow_tf32()  # where torch.testing has frozen the flags, too
    try:
        for allowed in (False, True):
            torch._C._set_cudnn_allow_tf32(allowed)
            assert tf32_allowed(on_gpu) is allowed  # type: ignore[arg-type]
            assert not tf32_allowed(torch.ones(1))
            assert not tf32_allowed(SimpleNamespace(dtype=torch.float64, device=on_gpu.device))  # type: ignore[arg-type]
        if hasattr(torch.backends.cudnn, "conv"):
            torch._C._set_fp32_precision_setter("cuda", "conv", "ieee")
            assert not tf32_allowed(on_gpu)  # type: ignore[arg-type]
            torch._C._set_fp32_precision_setter("cuda", "conv", "tf32")
            assert tf32_allowed(on_gpu)  # type: ignore[arg-type]
    finally:
        torch._C._set_cudnn_allow_tf32(before)
