"""What the launchers refuse (csrc/validate.h): on every backend alike, a ValueError that names the field."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastops import _C
from fastops.backends import native
from tests import simt

POOL = dict(n=1, c=1, in_=(1, 4, 4), out=(1, 2, 2), kernel=(1, 2, 2), stride=(1, 2, 2))
CONV = dict(n=1, c=4, k=2, in_=(1, 4, 4), out=(1, 3, 3), kernel=(1, 2, 2))
NORM = dict(n=2, c=3, in_=(1, 2, 2), training=True)
UNPOOL = dict(n=1, c=1, in_=(1, 2, 2), out=(1, 4, 4))
RESIZE = dict(n=1, c=1, in_=(1, 4, 4), out=(1, 8, 8), filter=_C.Filter.linear)
STRUCTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "avg_pool": (_C.PoolParams, POOL),
    "max_pool": (_C.PoolParams, POOL),
    "gather": (_C.PoolParams, POOL),
    "conv": (_C.ConvParams, CONV),
    "conv_weight_grad": (_C.ConvParams, CONV),
    "batch_norm": (_C.BatchNormParams, NORM),
    "max_unpool": (_C.UnpoolParams, UNPOOL),
    "interpolate_weighted": (_C.InterpolateParams, RESIZE),
    "interpolate_weighted_u8": (_C.InterpolateParams, RESIZE),
    "interpolate_nearest": (_C.InterpolateParams, RESIZE),
}
# op, fields that are something else, what the message says
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("avg_pool", dict(n=-1), r"PoolParams\.n: -1"),
    ("avg_pool", dict(n=2**63 - 1), r"PoolParams\.n"),
    ("avg_pool", dict(n=2**30, c=2**30), "x: more than 2"),
    ("avg_pool", dict(stride=(1, 0, 2)), r"PoolParams\.stride: 0"),
    ("avg_pool", dict(kernel=(1, 2, -2)), r"PoolParams\.kernel: -2"),
    ("avg_pool", dict(pad=(0, 2, 0)), r"PoolParams\.pad: 2 is more than half"),
    ("avg_pool", dict(out=(1, 4, 2)), r"PoolParams\.out\.h: 4 does not follow from"),
    ("avg_pool", dict(dilation=(1, 1, 2), out=(1, 2, 1)), r"PoolParams\.dilation"),
    ("avg_pool", dict(dtype=_C.DType.u8), r"PoolParams\.dtype"),
    ("avg_pool", dict(dtype=_C.DType(77)), r"PoolParams\.dtype"),
    ("avg_pool", dict(adaptive=True, in_=(1, 1, 2**40), out=(1, 1, 2**30)), r"PoolParams\.out"),
    ("max_pool", dict(positions=_C.IndexType(9)), r"PoolParams\.positions: unknown"),
    ("gather", dict(c=0), r"PoolParams\.c: 0"),
    ("conv", dict(groups=3), r"ConvParams\.groups: 3 does not divide"),
    ("conv", dict(groups=0), r"ConvParams\.groups: 0"),
    ("conv", dict(dilation=(1, 0, 1)), r"ConvParams\.dilation: 0"),
    ("conv", dict(out=(1, 3, 7)), r"ConvParams\.out\.w: 7 does not follow from"),
    ("conv", dict(k=2**40, kernel=(1, 2**20, 2)), r"ConvParams"),
    ("conv", dict(kernel_family=_C.ConvKernel(50)), r"ConvParams\.kernel_family: 50"),
    ("conv_weight_grad", dict(c=0), r"ConvParams\.c: 0"),
    ("batch_norm", dict(param_dtype=_C.DType.f16), r"BatchNormParams\.param_dtype"),
    ("batch_norm", dict(in_=(1, -2, 2)), r"BatchNormParams\.in_: -2"),
    ("max_unpool", dict(out=(1, 4, -4)), r"UnpoolParams\.out: -4"),
    ("interpolate_weighted", dict(scale=(0.0, 3.0, 0.0)), r"InterpolateParams\.scale\.h: 3.* is not 8"),
    ("interpolate_weighted", dict(scale=(0.0, float("nan"), 0.0)), r"InterpolateParams\.scale\.h"),
    ("interpolate_weighted", dict(filter=_C.Filter.nearest), r"InterpolateParams\.filter"),
    ("interpolate_weighted", dict(in_=(2, 4, 4), out=(2, 8, 8)), r"InterpolateParams\.in_\.d: 2"),
    ("interpolate_weighted_u8", dict(), r"InterpolateParams\.dtype"),
    ("interpolate_nearest", dict(), r"InterpolateParams\.filter"),
]


def launchers(op: str) -> list[Any]:
    """The op's launchers in every module that this machine can run, with their number of addresses."""
    modules = [getattr(_C, f"cpu_{isa}") for isa in _C.usable_isas()]
    if simt.why_unavailable() is None:
        modules.append(simt.load().cuda)
    kernels = [getattr(module, op) for module in modules]
    return [(k, (k.__doc__ or "").splitlines()[0].count("arg") - 2) for k in kernels]


@pytest.mark.parametrize(
    ("op", "fields", "message"), REFUSED, ids=[f"{op}-{i}" for i, (op, *_) in enumerate(REFUSED)]
)
def test_params_that_kernels_cannot_serve(op: str, fields: dict[str, Any], message: str) -> None:
    struct, valid = STRUCTS[op]
    params = struct(**{**valid, **fields})
    for launcher, addresses in launchers(op):
        with pytest.raises(ValueError, match=message):
            launcher(params, *[0] * addresses, 1)


def test_missing_tensors() -> None:
    x, y = torch.ones(16), torch.empty(4)
    params = _C.PoolParams(**POOL)
    for launcher, _ in launchers("avg_pool"):
        with pytest.raises(ValueError, match="x: no address"):
            launcher(params, 0, y.data_ptr(), 1)
        with pytest.raises(ValueError, match="y: no address"):
            launcher(params, x.data_ptr(), 0, 1)
    empty = _C.PoolParams(**{**POOL, "n": 0})
    launchers("avg_pool")[0][0](empty, 0, 0, 1)


def test_missing_workspace() -> None:
    tensors = [torch.ones(64) for _ in range(4)]
    kernels = getattr(_C, f"cpu_{native.ISA}")
    assert kernels.conv_workspace(_C.ConvParams(**CONV), 1) > 0
    with pytest.raises(ValueError, match="workspace: no address"):
        kernels.conv(_C.ConvParams(**CONV), *(t.data_ptr() for t in tensors), 0, 1)


@pytest.mark.parametrize("threads", [0, -1, 2**31 - 1])
def test_numbers_of_threads(threads: int) -> None:
    x, y = torch.ones(16), torch.empty(4)
    kernels = getattr(_C, f"cpu_{native.ISA}")
    with pytest.raises(ValueError, match=f"threads: {threads}"):
        kernels.avg_pool(_C.PoolParams(**POOL), x.data_ptr(), y.data_ptr(), threads)
    with pytest.raises(ValueError, match=f"threads: {threads}"):
        kernels.conv_workspace(_C.ConvParams(**CONV), threads)


def test_plans_and_tables() -> None:
    with pytest.raises(ValueError, match=r"Device\.multiprocessors: 0"):
        _C.conv_plan(_C.ConvParams(**CONV), _C.ConvPass.forward, _C.Device(multiprocessors=0))
    with pytest.raises(ValueError, match="pass_: 7"):
        _C.conv_plan(_C.ConvParams(**CONV), _C.ConvPass(7), _C.Device())
    with pytest.raises(ValueError, match="axis: 3"):
        _C.interpolate_table(_C.InterpolateParams(**RESIZE), 3, False, False)
    with pytest.raises(ValueError, match="stride: 0"):
        _C.input_grad_taps(4, 4, 3, 0, 1, 1, 0)
    with pytest.raises(ValueError, match="phase: 2"):
        _C.input_grad_taps(4, 4, 3, 2, 1, 1, 2)


def test_the_double_backward_is_without_a_relu() -> None:
    t = torch.ones(64)
    for launcher, addresses in launchers("batch_norm_double_backward"):
        with pytest.raises(ValueError, match=r"BatchNormParams\.relu"):
            launcher(_C.BatchNormParams(**NORM, relu=True), *[t.data_ptr()] * addresses, 1)


# ---- what they serve ----------------------------------------------------------------------------


def backends() -> list[Any]:
    """What gives launchers that take tensors."""
    return [native.cpu_launcher, *([simt.launcher] if simt.why_unavailable() is None else [])]


def test_a_convolution_of_no_images() -> None:
    params, none, w = _C.ConvParams(**{**CONV, "n": 0}), torch.empty(0), torch.ones(32)
    for launcher in backends():
        dw, db = torch.full((32,), torch.nan), torch.full((2,), torch.nan)
        launcher("conv")(params, none, w, None, none)
        launcher("conv_input_grad")(params, none, w, None, none)
        launcher("conv_backward")(params, none, none, w, none, dw, db)
        assert not dw.any() and not db.any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_positions_outside_of_the_plane_read_zero(channels_last: bool) -> None:
    params = _C.PoolParams(**POOL, channels_last=channels_last)
    x, positions = torch.arange(1.0, 17), torch.tensor([-1, 15, 16, 2**62])
    for launcher in backends():
        y = torch.full((4,), torch.nan)
        launcher("gather")(params, x, positions, y)
        assert y.tolist() == [0, 16, 0, 0]


def test_unpooling_from_nothing() -> None:
    params = _C.UnpoolParams(**{**UNPOOL, "out": (1, 0, 4)})
    for launcher in backends():
        dx = torch.full((4,), torch.nan)
        try:
            launcher("max_unpool_adjoint")(params, torch.empty(0), torch.zeros(4, dtype=torch.int64), dx)
        except RuntimeError as error:
            assert "invalid max index" in str(error)
        else:
            assert not dx.any()
