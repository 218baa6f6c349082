"""Layers: subclasses of torch.nn's own classes that override the forward call, and nothing else; but
Conv2d and BatchNorm2d have an option more.

So ``isinstance``, ``repr``, ``state_dict``, copying, pickling and parametrisations are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from fastops import arguments, functional
from fastops._functional.batch_norm import sync_batch_norm
from fastops.arguments import IntPair

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "SyncBatchNorm",
    "Upsample",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
]


def _fused(layer: Conv2d | BatchNorm2d) -> str:
    """What repr says of an activation."""
    return "" if layer.activation is None else f", activation={layer.activation!r}"


# ---- convolution --------------------------------------------------------------------------------


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` on fastops' kernels; a ReLU may be fused to it.

    activation: None, or "relu" for y = relu(conv2d(input)); ValueError for another. Parameters and
    ``state_dict`` are torch's, whatever the activation.
    """

    activation: str | None = None  # of layers that `convert` made of torch's

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        **more: Any,  # what newer versions of torch know
    ) -> None:
        arguments.activation("Conv2d", activation)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            **more,
        )
        self.activation = activation

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return functional.conv2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _fused(self)


class ConvTranspose2d(nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` on fastops' kernels."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.padding_mode != "zeros":
            raise ValueError("Only `zeros` padding mode is supported for ConvTranspose2d")
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        return functional.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


# ---- average pooling ----------------------------------------------------------------------------


class AvgPool2d(nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` on fastops' kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d`` on fastops' kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(input, self.output_size)


# ---- max pooling and unpooling ------------------------------------------------------------------


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` on fastops' kernels."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d`` on fastops' kernels."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class MaxUnpool2d(nn.MaxUnpool2d):
    """``torch.nn.MaxUnpool2d`` on fastops' kernels."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return functional.max_unpool2d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )


# ---- batch norm ---------------------------------------------------------------------------------


class BatchNorm2d(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` on fastops' kernels; a ReLU and an addition may be fused to it.

    activation: None, or "relu" for y = relu(batch_norm(input) + residual); ValueError for another.
    forward's residual: None, or a tensor of the input's shape, dtype and device (else RuntimeError). Its
    activation: for this call, where the layer has none.
    Parameters, buffers and ``state_dict`` are torch's, whatever the activation.
    """

    activation: str | None = None  # of layers that `convert` made of torch's

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        **more: Any,  # what newer versions of torch know
    ) -> None:
        arguments.activation("BatchNorm2d", activation)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **more)
        self.activation = activation

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, activation: str | None = None
    ) -> Tensor:
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        counting = self.training and self.track_running_stats and self.num_batches_tracked is not None
        if counting and self.momentum is None:  # the average over all batches so far
            momentum = 1.0 / (float(self.num_batches_tracked) + 1.0)
        updating = not self.training or self.track_running_stats
        y = functional.batch_norm(
            input,
            self.running_mean if updating else None,
            self.running_var if updating else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
            residual=residual,
            activation=self.activation or activation,
        )
        if counting:
            self.num_batches_tracked.add_(1)
        return y

    def extra_repr(self) -> str:
        return super().extra_repr() + _fused(self)


class SyncBatchNorm(nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm`` on fastops' kernels: in training the statistics are those of all processes
    of the group, on CPUs (gloo) as well as on GPUs (NCCL).

    Processes may have batches of different sizes, or empty ones. All get the same statistics, bit for bit;
    with one process that has the whole batch they agree to rounding. Gradients up to the second order, for
    which every process must do the same. Outside a group it is batch normalisation. torch.compile breaks
    the graph at it.
    """

    def _synchronised(
        self, input: Tensor, statistics: tuple[Tensor | None, Tensor | None], momentum: float, group: Any
    ) -> Tensor:
        return sync_batch_norm(*(input, *statistics, self.weight, self.bias, momentum, self.eps, group))

    # torch.compiler.disable, but for its import of torch._dynamo, which takes a second and a half, and keeps
    # alive the group that there is at that time (torch.distributed.nn's functions have it as a default).
    _synchronised_uncompiled = _disable_dynamo(_synchronised)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, activation: str | None = None
    ) -> Tensor:
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        tracked = self.track_running_stats and self.num_batches_tracked is not None
        if self.training and tracked and self.momentum is None:
            momentum = 1.0 / (float(self.num_batches_tracked) + 1.0)
        updating = not self.training or self.track_running_stats
        statistics = (self.running_mean, self.running_var) if updating else (None, None)
        together = dist.is_available() and dist.is_initialized()
        group = self.process_group or (dist.group.WORLD if together else None)
        if self.training and group is not None and dist.get_world_size(group) > 1:
            compiling = torch.compiler.is_compiling()
            synchronised = self._synchronised_uncompiled if compiling else self._synchronised
            y = synchronised(input, statistics, momentum, group)
            y = y if residual is None else y + residual
            y = y if activation is None else F.relu(y)
        else:
            options = self.training or self.running_mean is None, momentum, self.eps
            parameters = self.weight, self.bias
            y = functional.batch_norm(
                input, *statistics, *parameters, *options, residual=residual, activation=activation
            )
        if self.training and tracked:
            self.num_batches_tracked.add_(1)
        return y

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """``fastops.convert_sync_batchnorm``."""
        return convert_sync_batchnorm(module, process_group)


def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
    """Replaces every BatchNorm of a model, torch's or fastops', of any rank, by ``fastops.SyncBatchNorm``,
    in place, with the same parameters and buffers; ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``.

    process_group: the processes whose batches are one; None: all. Returns the model, or where that is itself
    a BatchNorm the new layer. Raises ValueError for a layer that has an activation.
    """
    if getattr(module, "activation", None) is not None and isinstance(module, BatchNorm2d):
        raise ValueError("convert_sync_batchnorm: a layer has an activation, which SyncBatchNorm has not")
    result = module
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SyncBatchNorm):
        result = SyncBatchNorm(
            *(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats),
            process_group,
        )
        # The very tensors: optimizers hold them.
        result._parameters, result._buffers = module._parameters, module._buffers
        result.training = module.training
    for name, child in module.named_children():
        result.add_module(name, convert_sync_batchnorm(child, process_group))
    return result


# ---- interpolation ------------------------------------------------------------------------------


def _upsample(self: nn.Upsample, input: Tensor) -> Tensor:
    return functional.interpolate(
        input,
        self.size,
        self.scale_factor,
        self.mode,
        self.align_corners,
        recompute_scale_factor=self.recompute_scale_factor,
    )


class Upsample(nn.Upsample):
    """``torch.nn.Upsample`` on fastops' kernels, for 4-d inputs."""

    forward = _upsample


class UpsamplingNearest2d(nn.UpsamplingNearest2d):
    """``torch.nn.UpsamplingNearest2d`` on fastops' kernels."""

    forward = _upsample


class UpsamplingBilinear2d(nn.UpsamplingBilinear2d):
    """``torch.nn.UpsamplingBilinear2d`` on fastops' kernels."""

    forward = _upsample
