"""conv2d and conv_transpose2d: arguments checked and normalised."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastops import arguments
from fastops.arguments import IntPair, hashable
from fastops.ops import conv, shapes
from fastops.ops.autograd import call
from fastops.ops.library import cached
from fastops.ops.replay import replayed


@cached(typed=True)
def _conv_spec(
    kernel: tuple[int, int], stride: IntPair, padding: IntPair | str, dilation: IntPair, groups: int
) -> tuple[conv.ConvSpec, tuple[int, int]]:
    """The options of a conv2d, and the padding of both sides together."""
    op = "conv2d"
    step = arguments.positive(op, "stride", arguments.pair(op, "stride", stride))
    spread = arguments.positive(op, "dilation", arguments.pair(op, "dilation", dilation))
    if isinstance(padding, str):
        if padding == "valid":
            before = both = (0, 0)
        elif padding == "same":
            if step != (1, 1):
                raise RuntimeError(
                    f"conv2d: padding='same' is not supported for strided convolutions, got stride={step}"
                )
            both = (spread[0] * (kernel[0] - 1), spread[1] * (kernel[1] - 1))
            before = (both[0] // 2, both[1] // 2)  # an odd rest goes to the end
        else:
            raise RuntimeError(f"conv2d: padding must be 'valid', 'same' or numbers, got {padding!r}")
    else:
        before = arguments.non_negative(op, "padding", arguments.pair(op, "padding", padding))
        both = (2 * before[0], 2 * before[1])
    return conv.ConvSpec(step, before, spread, groups), both


def _checked_conv(op: str, x: Tensor, w: Tensor, b: Tensor | None, groups: int, *, transposed: bool) -> None:
    """What conv2d and conv_transpose2d have in common."""
    fits = x.dtype == w.dtype and x.device == w.device
    if not fits or (b is not None and (b.dtype != x.dtype or b.device != x.device)):
        arguments.same_device(op, input=x, weight=w, bias=b)
        arguments.same_dtype(op, input=x, weight=w, bias=b)
    if w.dim() != 4 or 0 in w.shape[2:] or (transposed and w.shape[1] == 0):
        raise RuntimeError(f"{op}: expected a 4-d weight with a non-empty kernel, got shape {tuple(w.shape)}")
    if groups <= 0:
        raise RuntimeError(f"{op}: groups must be positive, got {groups}")
    if w.shape[0] % groups != 0 or w.shape[0] == 0:
        raise RuntimeError(
            f"{op}: expected the weight's first dimension to be a positive multiple of groups={groups}, "
            f"got weight {tuple(w.shape)}"
        )
    grouped = (w.shape[0], w.shape[1] * groups)
    channels_in, channels_out = grouped if transposed else grouped[::-1]
    if x.shape[1] != channels_in:
        raise RuntimeError(
            f"{op}: given groups={groups} and weight of shape {tuple(w.shape)}, expected the input to have "
            f"{channels_in} channels, but got {x.shape[1]} (shape {tuple(x.shape)})"
        )
    if b is not None and tuple(b.shape) != (channels_out,):
        raise RuntimeError(
            f"{op}: given weight of shape {tuple(w.shape)}, expected bias to be 1-d with {channels_out} "
            f"elements, but got shape {tuple(b.shape)}"
        )


@replayed(3, conv.tf32_state)
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
) -> Tensor:
    """Convolution; ``torch.nn.functional.conv2d``, and what often follows it: y = activation(conv2d(input)),
    rounded once.

    input: (N, C, H, W) or (C, H, W). weight: (K, C / groups, R, S). bias: (K) or None. All of one
    floating-point dtype, contiguous or channels_last; sums are in fp32 (fp64 for fp64).
    padding: numbers, 'valid', or 'same' (stride 1). activation: None or "relu", which keeps NaN.
    Returns (N, K, P, Q) or (K, P, Q), channels_last if input or weight is. On a GPU, fp32 is multiplied in
    TF32 where torch's switches allow it (``torch.backends.cudnn.conv.fp32_precision``, ``allow_tf32``).
    Raises RuntimeError for shapes, dtypes or devices that do not fit, TypeError for arguments of the
    wrong type, ValueError for an unknown activation, NotImplementedError for a dtype or device without a
    kernel.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv2d,
            (input, weight, bias),
            *(input, weight, bias, stride, padding, dilation, groups),
            activation=activation,
        )
    op = "conv2d"
    x, added = arguments.batched(op, arguments.tensor(op, "input", input))
    w = arguments.tensor(op, "weight", weight)
    b = None if bias is None else arguments.tensor(op, "bias", bias)
    x, w, b = arguments.autocast(x, w, b)
    groups = arguments.integer(op, "groups", groups)
    _checked_conv(op, x, w, b, groups, transposed=False)
    kernel = (w.shape[2], w.shape[3])
    spec, both = _conv_spec(kernel, hashable(stride), hashable(padding), hashable(dilation), groups)
    shape = (x.shape[0], w.shape[0], *_conv_size(x.shape, kernel, spec, both))
    relu = arguments.activation(op, activation) is not None
    y = call(conv.Conv, x, w, b, spec, shape, None, relu)
    return y.squeeze(0) if added else y


@cached(maxsize=4096)
def _conv_size(
    shape: tuple[int, ...], kernel: tuple[int, int], spec: conv.ConvSpec, padding: tuple[int, int]
) -> tuple[int, int]:
    size = tuple(
        shapes.conv_size(*axis)
        for axis in zip(shape[2:], kernel, spec.stride, padding, spec.dilation, strict=True)
    )
    if 0 in shape[2:] and 0 not in shape[:2]:
        raise RuntimeError(f"conv2d: only batch and channels of the input may be empty, got {tuple(shape)}")
    if size[0] < 1 or size[1] < 1:
        reach = tuple(d * (k - 1) + 1 for d, k in zip(spec.dilation, kernel, strict=True))
        raise RuntimeError(
            f"conv2d: the kernel, {reach} with its dilation, can't be greater than the input padded by "
            f"{padding} in all; input {tuple(shape)}"
        )
    arguments.allocatable("conv2d", (*shape[:1], *size))
    return size  # type: ignore[return-value]


@replayed(3, conv.tf32_state)
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    output_padding: IntPair = 0,
    groups: int = 1,
    dilation: IntPair = 1,
) -> Tensor:
    """Transposed convolution, the gradient of conv2d by its input; ``torch.nn.functional.conv_transpose2d``.

    input: (N, C, H, W) or (C, H, W). weight: (C, K / groups, R, S). bias: (K) or None. All of one
    floating-point dtype. Returns (N, K, P, Q) or (K, P, Q) with
    P = (H − 1) · stride − 2 · padding + dilation · (R − 1) + output_padding + 1.
    Errors as for conv2d.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv_transpose2d,
            (input, weight, bias),
            *(input, weight, bias, stride, padding, output_padding, groups, dilation),
        )
    op = "conv_transpose2d"
    x, added = arguments.batched(op, arguments.tensor(op, "input", input))
    w = arguments.tensor(op, "weight", weight)
    b = None if bias is None else arguments.tensor(op, "bias", bias)
    x, w, b = arguments.autocast(x, w, b)
    groups = arguments.integer(op, "groups", groups)
    _checked_conv(op, x, w, b, groups, transposed=True)
    spec, size = _conv_transpose_spec(
        x.shape,
        (w.shape[2], w.shape[3]),
        *map(hashable, (stride, padding, output_padding, dilation)),
        groups,
    )
    shape = (x.shape[0], w.shape[1] * groups, *size)
    y = call(conv.ConvInputGrad, x, w, b, spec, shape, None)
    return y.squeeze(0) if added else y


@cached(maxsize=4096, typed=True)
def _conv_transpose_spec(
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: IntPair,
    padding: IntPair,
    output_padding: IntPair,
    dilation: IntPair,
    groups: int,
) -> tuple[conv.ConvSpec, tuple[int, int]]:
    op = "conv_transpose2d"
    step = arguments.positive(op, "stride", arguments.pair(op, "stride", stride))
    spread = arguments.positive(op, "dilation", arguments.pair(op, "dilation", dilation))
    pad = arguments.non_negative(op, "padding", arguments.pair(op, "padding", padding))
    extra = arguments.non_negative(op, "output_padding", arguments.pair(op, "output_padding", output_padding))
    if any(e >= max(s, d) for e, s, d in zip(extra, step, spread, strict=True)):
        raise RuntimeError(
            f"conv_transpose2d: output_padding must be smaller than either stride or dilation, "
            f"got output_padding={extra}, stride={step}, dilation={spread}"
        )
    size = tuple(
        (i - 1) * s - 2 * p + d * (k - 1) + e + 1
        for i, s, p, d, k, e in zip(shape[2:], step, pad, spread, kernel, extra, strict=True)
    )
    if size[0] < 1 or size[1] < 1 or 0 in shape[2:]:
        raise RuntimeError(
            f"conv_transpose2d: the output would be {size}, which is too small: input {tuple(shape)}, "
            f"kernel {kernel}, stride={step}, padding={pad}, output_padding={extra}, dilation={spread}"
        )
    arguments.allocatable(op, (*shape[:1], *size))
    return conv.ConvSpec(step, pad, spread, groups), size  # type: ignore[return-value]
