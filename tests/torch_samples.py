"""torch's own samples of these ops and modules, and what comparing fastops with torch on one of them means.

``op_db`` has inputs and wrong inputs of functions, ``module_db`` of modules. tests/test_torch_samples.py asks
each of them, tests/reliability/samples.py counts.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Internals of torch, which some versions lack or which need a package of their own: whoever imports this
# module says what follows from an error.
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import fastops
import fastops.functional as G
from tests.cases import FUNCTIONS
from tests.tolerance import assert_accurate, assert_same_layout, terms_of_affine

OPS = [*FUNCTIONS, "upsample_nearest", "upsample_bilinear"]
INFOS = [
    o
    for o in op_db
    if o.name.removeprefix("nn.functional.") in OPS
    and hasattr(G, o.name.removeprefix("nn.functional."))
    # Modes of other ranks; the same samples once more without cuDNN.
    and o.variant_test_name not in ("linear", "trilinear", "without_cudnn")
]
MODULES = [m for m in module_db if m.module_cls.__name__ in fastops.modules.__all__]


def op_name(info: Any) -> str:
    return info.name.removeprefix("nn.functional.")


def label(info: Any) -> str:
    return f"{op_name(info)} {info.variant_test_name}".strip()


def describe(sample: Any) -> str:
    return f"{tuple(sample.input.shape)} {sample.args} {sample.kwargs}"[:200]


def supported(info: Any, x: Tensor) -> bool:
    """Samples of other ranks (1-d and 3-d layers) are not fastops' yet."""
    if op_name(info) in ("interpolate", "upsample_nearest", "upsample_bilinear"):
        return x.dim() == 4
    return True


def samples(info: Any, dtype: torch.dtype, device: str = "cpu") -> list[Any]:
    torch.manual_seed(0)
    all_of_them = info.sample_inputs(device, dtype, requires_grad=info.supports_autograd)
    return [s for s in all_of_them if supported(info, s.input)]


def spread(every: list[Any], most: int) -> list[tuple[int, Any]]:
    """With their numbers, at most about so many, evenly spread."""
    step = max(1, -(-len(every) // most))
    step += step > 1 and step % 2 == 0  # options alternate in pairs, so an even step would miss half of them
    return list(enumerate(every))[::step]


def in_channels_last(sample: Any) -> Any | None:
    """The sample with its 4-d tensors in channels_last; None where it has none that this changes."""
    changed = False

    def convert(value: Any) -> Any:
        nonlocal changed
        if not isinstance(value, Tensor) or value.dim() != 4:
            return value
        other = value.detach().contiguous(memory_format=torch.channels_last)
        changed |= other.stride() != value.stride()
        return other.requires_grad_(value.requires_grad)

    other = copy.copy(sample)
    other.input, other.args = convert(sample.input), tuple(map(convert, sample.args))
    other.kwargs = {k: convert(v) for k, v in sample.kwargs.items()}
    return other if changed else None


def call(
    module: Any, info: Any, sample: Any, double: bool = False, positive: bool = False
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
        grads = list(torch.autograd.grad(y, leaves, dy.abs() if positive else dy, allow_unused=True))
    return [o.detach().cpu() for o in outputs], [None if g is None else g.cpu() for g in grads]


def assert_close_enough(ours: Tensor, theirs: Tensor, reference: Tensor, what: str, terms: Any) -> float:
    """Returns the error as a part of what is allowed. In fp64 torch is the reference, so there is no error of
    its own to measure by."""
    if ours.dtype is torch.float64:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, equal_nan=True, msg=what)
        return 0.0
    return assert_accurate(ours, theirs, reference, what, terms)


def term_sizes(info: Any, sample: Any) -> tuple[list[Any], list[Any]]:
    """How large the terms of outputs and gradients are: what the op makes of absolute values, where it is
    linear."""
    if op_name(info) == "batch_norm":
        return [None] * 9, [None] * 9

    def absolute(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.detach().abs().requires_grad_(value.requires_grad)

    other = copy.copy(sample)
    other.input, other.args = absolute(sample.input), tuple(map(absolute, sample.args))
    other.kwargs = {k: absolute(v) for k, v in sample.kwargs.items()}
    return call(F, info, other, double=True, positive=True)  # type: ignore[return-value]


def has_duplicates(info: Any, sample: Any) -> bool:
    """Whether an unpooling overwrites: torch gives what is lost a gradient too, fastops not."""
    if op_name(info) != "max_unpool2d":
        return False
    planes = sample.args[0].flatten(-2).flatten(0, -2)
    return any(len(plane.unique()) < plane.numel() for plane in planes)


def compare(info: Any, sample: Any) -> float:
    """Values, layouts and gradients; returns the largest error as a part of what is allowed."""
    theirs, their_grads = call(F, info, sample)
    reference, reference_grads = call(F, info, sample, double=True)
    ours, our_grads = call(G, info, sample)
    assert len(ours) == len(theirs) and len(our_grads) == len(their_grads)
    worst = 0.0
    terms, grad_terms = term_sizes(info, sample)
    for k, (o, t, r) in enumerate(zip(ours, theirs, reference, strict=True)):
        if o.dtype.is_floating_point:
            worst = max(worst, assert_close_enough(o, t, r, "value", terms[k]))
        else:
            assert torch.equal(o, t), "indices"
        assert_same_layout(o, t)
    if has_duplicates(info, sample):
        return worst
    for i, (o, t, r) in enumerate(zip(our_grads, their_grads, reference_grads, strict=True)):
        assert (o is None) == (t is None), f"gradient {i} is missing on one side"
        if o is not None:
            worst = max(worst, assert_close_enough(o, t, r, f"gradient {i}", grad_terms[i]))
    return worst


def raised(call: Callable[[], Any]) -> Exception | None:
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return error
    return None


def refuse(info: Any, wrong: Any) -> None:
    """One of torch's wrong inputs: the type of error that torch says, from both."""
    s = wrong.sample_input
    for module in (F, G):
        error = raised(lambda m=module: getattr(m, op_name(info))(s.input, *s.args, **s.kwargs))
        assert isinstance(error, wrong.error_type), f"{module.__name__}: {error!r}"
    assert op_name(info) in str(error), f"the message does not name the op: {error}"


# ---- modules ------------------------------------------------------------------------------------


def module_samples(info: Any, dtype: torch.dtype, device: str = "cpu") -> Iterator[tuple[str, bool, Any]]:
    """A name, training or not (where they differ) and a sample."""
    for training in (True, False) if info.train_and_eval_differ else (True,):
        torch.manual_seed(0)
        inputs = info.module_inputs_func(
            info, device=device, dtype=dtype, requires_grad=True, training=training
        )
        for number, sample in enumerate(inputs):
            mode = "" if training else " eval"
            yield f"{info.module_cls.__name__}{mode} {number} {sample.desc}".strip(), training, sample


def forward_backward(
    module: nn.Module, sample: Any, move: Callable[[Tensor], Tensor] = lambda t: t
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients, on the CPU, of inputs that `move` has changed."""

    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return move(value.detach().clone()).requires_grad_(value.requires_grad)

    args = [fresh(a) for a in sample.forward_input.args]
    result = module(*args, **{k: fresh(v) for k, v in sample.forward_input.kwargs.items()})
    outputs = [result] if isinstance(result, Tensor) else list(result)
    leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad] + list(module.parameters())
    dy = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1)).to(outputs[0])
    grads = torch.autograd.grad(outputs[0], leaves, dy)
    return [o.detach().cpu() for o in outputs], [g.cpu() for g in grads]


def to_double(t: Tensor) -> Tensor:
    return t.cpu().double() if t.dtype.is_floating_point else t.cpu()


def parameter_terms(module: nn.Module, y: Tensor) -> list[Tensor]:
    """How large the terms of batch norm's gradients of parameters are; from its output, in fp64."""
    if not isinstance(module, nn.BatchNorm2d) or module.weight is None or not y.numel():
        return []
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))  # forward_backward's
    weight, bias = (0 if t is None else t.detach().view(1, -1, 1, 1) for t in (module.weight, module.bias))
    return terms_of_affine((y - bias) / weight, dy)[: len(list(module.parameters()))]


def compare_module(
    theirs_class: type[nn.Module],
    training: bool,
    sample: Any,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Construction, repr, state_dict, values, gradients, running statistics, copies and pickles."""
    ours_class = getattr(fastops, theirs_class.__name__)
    args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
    torch.manual_seed(0)
    theirs = theirs_class(*args, **kwargs).train(training).to(dtype)
    torch.manual_seed(0)
    ours = ours_class(*args, **kwargs).train(training).to(dtype)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), "initialised differently from the same seed"
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"

    ours.to(device)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    reference, reference_grads = forward_backward(copy.deepcopy(theirs).double(), sample, to_double)
    t_values, t_grads = forward_backward(theirs, sample, Tensor.cpu)
    o_values, o_grads = forward_backward(ours, sample)
    of_parameters = parameter_terms(theirs, reference[0])
    grad_terms = [None] * (len(o_grads) - len(of_parameters)) + of_parameters
    for what, ours_, theirs_, exact, terms in (
        ("output", o_values, t_values, reference, [None] * len(o_values)),
        ("gradient", o_grads, t_grads, reference_grads, grad_terms),
    ):
        for i, (o, t, r, size) in enumerate(zip(ours_, theirs_, exact, terms, strict=True)):
            if o.dtype.is_floating_point:
                assert_accurate(o, t, r, f"{what} {i}", size)
            else:
                assert torch.equal(o, t)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a.cpu(), b)  # the running statistics moved alike
    for copied in copies:
        assert type(copied) is ours_class and repr(copied) == repr(ours)
        for a, b in zip(forward_backward(copied, sample)[0], o_values, strict=True):
            assert torch.equal(a, b)


def module_refusals(info: Any) -> Iterator[Any]:
    """torch's wrong inputs of a module, in training and in evaluation."""
    for training in (True, False):
        if info.module_error_inputs_func is not None:
            yield from info.module_error_inputs_func(
                info, device="cpu", dtype=torch.float32, requires_grad=True, training=training
            )


def refuse_module(info: Any, wrong: Any) -> None:
    """One of them: the type of error that torch says, from both."""
    construct = wrong.module_error_input.constructor_input
    forward = wrong.module_error_input.forward_input
    for cls in (info.module_cls, getattr(fastops, info.module_cls.__name__)):
        error = raised(lambda c=cls: c(*construct.args, **construct.kwargs)(*forward.args, **forward.kwargs))
        assert isinstance(error, wrong.error_type), f"{cls.__module__}: {error!r}"
