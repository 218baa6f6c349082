"""batch_norm: arguments checked and normalised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastops import arguments
from fastops.ops import batch_norm as _batch_norm
from fastops.ops import sync_batch_norm as _sync_batch_norm
from fastops.ops.replay import replayed


def _batch_norm_parameter(op: str, name: str, t: Tensor | None, x: Tensor) -> None:
    """Checks one per-channel argument: a tensor with an element for each channel, on x's device."""
    if t is None:
        return
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}(): argument '{name}' must be Tensor, not {type(t).__name__}")
    arguments.dense(op, name, t)
    if t.numel() != x.shape[1]:
        raise RuntimeError(f"{op}: {name} should contain {x.shape[1]} elements not {t.numel()}")
    if t.device != x.device:
        raise RuntimeError(f"{op}: {name} is on {t.device}, expected {x.device}, where the input is")


def _batch_norm_dtype(op: str, x: Tensor, named: dict[str, Tensor | None]) -> torch.dtype:
    """The one dtype of the parameters and buffers: the input's, or float32 beside a 16-bit input."""
    given = {name: t.dtype for name, t in named.items() if t is not None}
    dtype = next(iter(given.values()), x.dtype)
    allowed = {x.dtype, torch.float32} if x.dtype.itemsize == 2 else {x.dtype}
    for name, d in given.items():
        if d not in allowed or d != dtype:
            expected = " or ".join(str(a) for a in sorted(allowed, key=str))
            raise RuntimeError(
                f"{op}: mixed dtypes: {name} has dtype {d}; with an input of {x.dtype}, weight, bias and "
                f"running statistics must all be {expected}, got {given}"
            )
    return dtype


def _parameter_dtype(op: str, x: Tensor, *parameters: Tensor | None) -> torch.dtype:
    """The dtype of weight, bias and running statistics, which are checked."""
    dtype, channels, device = None, x.shape[1], x.device
    for t in parameters:  # the quick way: does all fit?
        if t is None:
            continue
        if not isinstance(t, Tensor) or t.layout is not torch.strided or t.is_nested:
            break
        if t.numel() != channels or t.device != device:
            break
        if dtype is None:
            dtype = t.dtype
        elif dtype is not t.dtype:
            break
    else:
        if dtype is None or dtype is x.dtype:
            return x.dtype
        if dtype is torch.float32 and x.dtype.itemsize == 2:
            return dtype
    named = dict(zip(("weight", "bias", "running_mean", "running_var"), parameters, strict=True))
    for name, t in named.items():
        _batch_norm_parameter(op, name, t, x)
    return _batch_norm_dtype(op, x, named)


def _check_residual(op: str, x: Tensor, residual: Tensor) -> None:
    if not isinstance(residual, Tensor):
        raise TypeError(f"{op}(): argument 'residual' must be Tensor, not {type(residual).__name__}")
    arguments.dense(op, "residual", residual)
    for what in ("shape", "dtype", "device"):
        ours, wanted = getattr(residual, what), getattr(x, what)
        if ours != wanted:
            ours, wanted = (tuple(v) if isinstance(v, torch.Size) else v for v in (ours, wanted))
            raise RuntimeError(f"{op}: residual has {what} {ours}, expected the input's, {wanted}")


def _check_running_statistics(op: str, name: str, t: Tensor | None, training: bool) -> None:
    if t is None:
        return
    if t.dim() != 1:
        raise RuntimeError(f"{op}: {name} must have one dimension, got shape {tuple(t.shape)}")
    if training and t.stride(0) == 0 and t.numel() > 1:  # before either of the two is written to
        raise RuntimeError(f"{op}: {name}, which is updated, has one element in several places (expand?)")
    if t.requires_grad:
        raise RuntimeError(f"{op}: not differentiable wrt {name}, which cannot have requires_grad True")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None:
        raise RuntimeError(f"{op}: not differentiable wrt {name}, which cannot carry a forward gradient")


@replayed(5)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Normalises each channel by its mean and variance; ``torch.nn.functional.batch_norm``, and what often
    follows it: y = activation(batch_norm(input) + residual), in one pass and rounded once.

    input: (N, C, ...), floating point, any rank ≥ 2; contiguous or channels_last. weight, bias,
    running_mean, running_var: (C,), all of the input's dtype, or float32 beside a 16-bit input.
    training: the statistics are the batch's, and the running ones, where given, are updated in place with
    weight ``momentum`` (and the unbiased variance); else the running ones are used.
    residual: None, or a tensor of the input's shape, dtype and device, to be added; of another layout, it
    is copied into the input's. activation: None or "relu", which keeps NaN. The backward keeps input and
    residual (this only with an activation) instead of a mask, and computes again where y is positive.
    Returns a tensor like the input, in its layout. Statistics are in fp32 (fp64 for fp64) and centred, so
    a large mean costs no digits. Gradients up to the second order, in reverse and forward mode.
    Raises ValueError for one value per channel or eps ≤ 0 in training, and for one running statistic
    without the other; RuntimeError for evaluation without running statistics, and for arguments whose
    size, dtype or device does not fit, which a residual's shape does not either if it would have to be
    broadcast; ValueError for an unknown activation. Nothing is updated when it raises.
    """
    tensors = (input, running_mean, running_var, weight, bias, residual)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            batch_norm,
            tensors,
            *tensors[:5],
            training=training,
            momentum=momentum,
            eps=eps,
            residual=residual,
            activation=activation,
        )
    op = "batch_norm"
    x = arguments.tensor(op, "input", input)
    momentum = arguments.number(op, "momentum", momentum)
    eps = arguments.number(op, "eps", eps)
    if not isinstance(training, bool):
        raise TypeError(f"{op}(): argument 'training' must be bool, not {type(training).__name__}")
    if activation is not None:
        arguments.activation(op, activation)
    if residual is not None:
        _check_residual(op, x, residual)
    if x.dim() == 1 and x.numel() == 0:  # legal in torch: no batch, no channels
        x = x.view(0, 0)
        residual = None if residual is None else residual.view(0, 0)
        parameters = running_mean, running_var, weight, bias
        options = training, momentum, eps
        return batch_norm(x, *parameters, *options, residual=residual, activation=activation).view(0)
    if x.dim() < 2:
        raise (IndexError if training and x.dim() == 0 else RuntimeError)(
            f"{op}: expected an input of shape (N, C, ...), got {tuple(x.shape)}"
        )
    if training:
        # One value per channel, as torch counts: an empty batch is let through.
        if x.numel() == x.shape[1] and x.shape[0] == 1 and x.shape[2:].numel() == 1:
            raise ValueError(
                f"{op}: expected more than 1 value per channel when training, got input size {tuple(x.shape)}"
            )
        if eps <= 0.0:
            raise ValueError(f"{op}: eps must be positive during training, but got {eps}")
    elif eps < 0.0:
        raise ValueError(f"{op}: eps must be non-negative, but got {eps}")
    if not training and (running_mean is None or running_var is None):
        name = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"{op}: {name} must be defined in evaluation mode")
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{op}: running_mean and running_var must either both be None or neither be None")
    dtype = _parameter_dtype(op, x, weight, bias, running_mean, running_var)
    _check_running_statistics(op, "running_mean", running_mean, training)
    _check_running_statistics(op, "running_var", running_var, training)
    return _batch_norm.batch_norm(
        *(x, running_mean, running_var, weight, bias, dtype, training, momentum, eps),
        *(residual, activation is not None),
    )


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    process_group: Any,
) -> Tensor:
    """``batch_norm`` in training with the statistics of all processes of a group, which all have to call it.

    input: (N, C, ...), of which N may differ between the processes and may be 0. Parameters as for
    ``batch_norm``, with the same errors.
    """
    op = "sync_batch_norm"
    x = arguments.tensor(op, "input", input)
    if x.dim() < 2:
        raise RuntimeError(f"{op}: expected an input of shape (N, C, ...), got {tuple(x.shape)}")
    if eps <= 0.0:
        raise ValueError(f"{op}: eps must be positive during training, but got {eps}")
    dtype = _parameter_dtype(op, x, weight, bias, running_mean, running_var)
    return _sync_batch_norm.SyncBatchNorm.apply(  # type: ignore[no-any-return]
        *(x, weight, bias, running_mean, running_var, dtype, momentum, eps, process_group)
    )[0]
