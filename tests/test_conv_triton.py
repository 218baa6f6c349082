"""The Triton convolution for Hopper: cases that it serves, in each pass. Elsewhere its general kernels do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G
from fastops import _C
from fastops.ops import layout
from fastops.ops.conv import ConvSpec, conv_params
from tests import interpreter
from tests.conftest import device_of
from tests.tolerance import assert_accurate

PASSES = {"y": _C.ConvPass.forward, "dx": _C.ConvPass.input_grad, "dw": _C.ConvPass.weight_grad}
# x, w, options, which passes are served, why
CASES = [
    ((2, 16, 10, 12), (24, 16, 3, 3), dict(padding=1), "y dw", "24 channels: no whole step of the gradient"),
    ((2, 32, 10, 13), (48, 32, 3, 3), dict(padding=1), "y dx dw", "steps of 32 and of 16, tails of both"),
    ((1, 64, 9, 7), (136, 64, 1, 1), dict(), "y dw", "1×1, more than one tile of channels"),
    ((3, 16, 8, 6), (16, 16, 3, 3), dict(stride=2, padding=1), "y dx dw", "stride 2: pairs, and four phases"),
    ((1, 16, 8, 8), (32, 16, 4, 4), dict(stride=2, padding=1), "y dx dw", "stride 2, an even kernel"),
    ((1, 16, 9, 9), (16, 16, 3, 3), dict(stride=2), "dx", "stride 2 of an odd image: the gradient alone"),
    ((1, 16, 12, 9), (16, 16, 3, 3), dict(stride=3, padding=1), "dx", "stride 3: nine phases"),
    ((1, 16, 11, 10), (16, 16, 3, 3), dict(padding=2, dilation=2), "y dx dw", "dilation"),
    ((1, 16, 10, 8), (16, 16, 3, 2), dict(stride=2, padding=2, dilation=3), "y dw", "dilation and stride"),
    ((5, 16, 4, 3), (16, 16, 2, 5), dict(padding=(1, 4)), "y dx dw", "several images in a box, wide padding"),
]  # fmt: skip

tried = [
    *([interpreter.NAME] if interpreter.IS_ON else []),
    *([pytest.param("triton", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []),
]


@pytest.mark.skipif(not tried, reason="neither in Triton's interpreter nor with a GPU")
@pytest.mark.parametrize("backend", tried, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("x", "w", "options", "passes", "why"), CASES, ids=[c[-1] for c in CASES])
def test_against_torch(
    x: tuple, w: tuple, options: dict, passes: str, why: str, dtype: torch.dtype, backend: str
) -> None:
    from fastops.backends.triton.conv_plan import tma_serves

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        t = torch.randn(shape, generator=generator).to(dtype)
        return t.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else t

    def both(module: object, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors[:3]]
        y = module.conv2d(*leaves, **options)  # type: ignore[attr-defined]
        return y.detach(), *torch.autograd.grad(y, leaves, tensors[3])

    tensors = random(*x), random(*w), random(w[0])
    dy = random(*F.conv2d(*tensors, **options).shape)
    exact = both(F, *(t.double() for t in (*tensors, dy)))
    theirs = both(F, *tensors, dy)
    ours = both(G, *(t.to(device_of(backend)) for t in (*tensors, dy)))
    for name, o, t, e in zip(("y", "dx", "dw", "db"), ours, theirs, exact, strict=True):
        assert_accurate(o.cpu(), t, e, name)

    pairs = {k: v if isinstance(v, tuple) else (v, v) for k, v in options.items()}
    spec = ConvSpec(
        *(pairs.get(k, d) for k, d in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)))), 1
    )
    last = layout.CHANNELS_LAST
    params = conv_params(spec, x, w, tuple(dy.shape), dtype, last, last)
    assert {name for name, pass_ in PASSES.items() if tma_serves(params, pass_)} == {*passes.split()}
