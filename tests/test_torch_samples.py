"""torch's own samples: ``op_db``'s inputs and wrong inputs for these ops, ``module_db``'s for the modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastops
import fastops.functional as G
from tests.tolerance import assert_accurate, assert_same_layout

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:.*:UserWarning")

try:  # internals of torch, which some versions lack or which need a package of their own
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db
except Exception as error:  # pragma: no cover
    pytest.skip(f"no torch.testing._internal in this torch: {error}", allow_module_level=True)

OPS = [
    "conv2d",
    "conv_transpose2d",
    "avg_pool2d",
    "max_pool2d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "max_unpool2d",
    "batch_norm",
    "interpolate",
    "upsample_nearest",
    "upsample_bilinear",
]
INFOS = [
    o
    for o in op_db
    if o.name.removeprefix("nn.functional.") in OPS
    and hasattr(G, o.name.removeprefix("nn.functional."))
    # Modes of other ranks; the same samples once more without cuDNN.
    and o.variant_test_name not in ("linear", "trilinear", "without_cudnn")
]
DTYPES = [torch.float32, torch.float64]
# max_pool2d has 1440 samples, max_unpool2d 288: the default run takes at most so many, evenly spread.
DEFAULT_SAMPLES = 48


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """Samples are tiny: on a busy machine the threads would mostly wait for each other."""
    torch.set_num_threads(1)


def op_name(info: Any) -> str:
    return info.name.removeprefix("nn.functional.")


def label(info: Any) -> str:
    return f"{op_name(info)} {info.variant_test_name}".strip()


def supported(info: Any, x: Tensor) -> bool:
    """Samples of other ranks (1-d and 3-d layers) are not fastops' yet."""
    if op_name(info) in ("interpolate", "upsample_nearest", "upsample_bilinear"):
        return x.dim() == 4
    return True


def call(
    module: Any, info: Any, sample: Any, double: bool = False
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs, and the gradients of every input that wants one (of the sum of the first output, weighted), on
    the CPU, where also torch computes them: on GPUs it does not everywhere do it right."""
    leaves: list[Tensor] = []

    def prepare(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        fresh = value.detach().clone()
        if module is F:
            fresh = fresh.cpu()
        if double and fresh.dtype.is_floating_point:
            fresh = fresh.double()
        if value.requires_grad:
            leaves.append(fresh.requires_grad_())
        return fresh

    args = [prepare(a) for a in (sample.input, *sample.args)]
    kwargs = {k: prepare(v) for k, v in sample.kwargs.items()}
    result = getattr(module, op_name(info))(*args, **kwargs)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    grads: list[Tensor | None] = []
    if outputs[0].requires_grad and outputs[0].numel():
        y = outputs[0]
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        grads = list(torch.autograd.grad(y, leaves, dy, allow_unused=True))
    return [o.detach().cpu() for o in outputs], [None if g is None else g.cpu() for g in grads]


def assert_close_enough(ours: Tensor, theirs: Tensor, reference: Tensor, what: str) -> None:
    """In fp64 torch is the reference, so there is no error of its own to measure by."""
    if ours.dtype is torch.float64:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, equal_nan=True, msg=what)
    else:
        assert_accurate(ours, theirs, reference, what)


def has_duplicates(info: Any, sample: Any) -> bool:
    """Whether an unpooling overwrites: torch gives what is lost a gradient too, fastops not."""
    if op_name(info) != "max_unpool2d":
        return False
    planes = sample.args[0].flatten(-2).flatten(0, -2)
    return any(len(plane.unique()) < plane.numel() for plane in planes)


def compare(info: Any, sample: Any) -> None:
    theirs, their_grads = call(F, info, sample)
    reference, reference_grads = call(F, info, sample, double=True)
    ours, our_grads = call(G, info, sample)
    assert len(ours) == len(theirs) and len(our_grads) == len(their_grads)
    for o, t, r in zip(ours, theirs, reference, strict=True):
        if o.dtype.is_floating_point:
            assert_close_enough(o, t, r, "value")
        else:
            assert torch.equal(o, t), "indices"
        assert_same_layout(o, t)
    if has_duplicates(info, sample):
        return
    for i, (o, t, r) in enumerate(zip(our_grads, their_grads, reference_grads, strict=True)):
        assert (o is None) == (t is None), f"gradient {i} is missing on one side"
        if o is not None:
            assert_close_enough(o, t, r, f"gradient {i}")


def samples(info: Any, dtype: torch.dtype, device: str = "cpu") -> list[Any]:
    torch.manual_seed(0)
    all_of_them = info.sample_inputs(device, dtype, requires_grad=info.supports_autograd)
    return [s for s in all_of_them if supported(info, s.input)]


def check(info: Any, chosen: list[tuple[int, Any]]) -> None:
    failures = []
    for number, sample in chosen:
        try:
            compare(info, sample)
        except Exception as error:  # every sample has its say
            summary = f"{tuple(sample.input.shape)} {sample.args} {sample.kwargs}"
            failures.append(f"sample {number}: {summary[:200]}: {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} of {len(chosen)}:\n" + "\n".join(failures[:5])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("info", INFOS, ids=label)
def test_samples(info: Any, dtype: torch.dtype, backend: str, device: str) -> None:
    """Values, layouts and gradients; of very many samples every k-th, starting with the first."""
    every = samples(info, dtype, device)
    step = max(1, -(-len(every) // DEFAULT_SAMPLES))
    step += step > 1 and step % 2 == 0  # options alternate in pairs, so an even step would miss half of them
    check(info, list(enumerate(every))[::step])


@pytest.mark.long
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("info", INFOS, ids=label)
def test_all_samples(info: Any, dtype: torch.dtype) -> None:
    check(info, list(enumerate(samples(info, dtype))))


@pytest.mark.parametrize("info", [o for o in INFOS if o.error_inputs_func is not None], ids=label)
def test_error_inputs(info: Any) -> None:
    for wrong in info.error_inputs("cpu"):
        s = wrong.sample_input
        with pytest.raises(wrong.error_type):
            getattr(F, op_name(info))(s.input, *s.args, **s.kwargs)
        with pytest.raises(wrong.error_type, match=op_name(info)):
            getattr(G, op_name(info))(s.input, *s.args, **s.kwargs)


# ---- modules ------------------------------------------------------------------------------------

MODULES = [m for m in module_db if m.module_cls.__name__ in fastops.modules.__all__]


def module_cases() -> Iterator[Any]:
    """One per module, training or evaluation where they differ, and sample."""
    for info in MODULES:
        for training in (True, False) if info.train_and_eval_differ else (True,):
            torch.manual_seed(0)
            inputs = info.module_inputs_func(
                info, device="cpu", dtype=torch.float32, requires_grad=True, training=training
            )
            for number, sample in enumerate(inputs):
                mode = "" if training else " eval"
                name = f"{info.module_cls.__name__}{mode} {number} {sample.desc}".strip()
                yield pytest.param(info.module_cls, training, sample, id=name)


def forward_backward(
    module: nn.Module, sample: Any, double: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        copied = value.detach().clone()
        copied = copied.double() if double and copied.dtype.is_floating_point else copied
        return copied.requires_grad_(value.requires_grad)

    args = [fresh(a) for a in sample.forward_input.args]
    result = module(*args, **{k: fresh(v) for k, v in sample.forward_input.kwargs.items()})
    outputs = [result] if isinstance(result, Tensor) else list(result)
    leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad] + list(module.parameters())
    dy = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1)).to(outputs[0].dtype)
    return [o.detach() for o in outputs], list(torch.autograd.grad(outputs[0], leaves, dy))


@pytest.mark.parametrize(("theirs_class", "training", "sample"), list(module_cases()))
def test_modules(theirs_class: type[nn.Module], training: bool, sample: Any) -> None:
    ours_class = getattr(fastops, theirs_class.__name__)
    args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
    torch.manual_seed(0)
    theirs = theirs_class(*args, **kwargs).train(training)
    torch.manual_seed(0)
    ours = ours_class(*args, **kwargs).train(training)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), "initialised differently from the same seed"
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"

    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    reference, reference_grads = forward_backward(copy.deepcopy(theirs).double(), sample, double=True)
    t_values, t_grads = forward_backward(theirs, sample)
    o_values, o_grads = forward_backward(ours, sample)
    for group, other, exact in ((o_values, t_values, reference), (o_grads, t_grads, reference_grads)):
        for i, (o, t, r) in enumerate(zip(group, other, exact, strict=True)):
            if o.dtype.is_floating_point:
                assert_accurate(o, t, r, f"tensor {i}")
            else:
                assert torch.equal(o, t)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)  # the running statistics moved alike
    for other in copies:
        assert type(other) is ours_class and repr(other) == repr(ours)
        for a, b in zip(forward_backward(other, sample)[0], o_values, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "info", [m for m in MODULES if m.module_error_inputs_func], ids=lambda m: m.module_cls.__name__
)
def test_module_error_inputs(info: Any) -> None:
    for training in (True, False):
        for wrong in info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=True, training=training
        ):
            construct, forward = (
                wrong.module_error_input.constructor_input,
                wrong.module_error_input.forward_input,
            )
            for cls in (info.module_cls, getattr(fastops, info.module_cls.__name__)):
                with pytest.raises(wrong.error_type):
                    cls(*construct.args, **construct.kwargs)(*forward.args, **forward.kwargs)
