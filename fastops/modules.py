"""Layers: subclasses of torch.nn's own classes that override the forward call, and nothing else.

So ``isinstance``, ``repr``, ``state_dict``, copying, pickling and parametrisations are torch's.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastops import functional

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm2d"]

# ---- convolution --------------------------------------------------------------------------------

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

# ---- batch norm ---------------------------------------------------------------------------------


class BatchNorm2d(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` on fastops' kernels."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        counting = self.training and self.track_running_stats and self.num_batches_tracked is not None
        if counting:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        updating = not self.training or self.track_running_stats
        return functional.batch_norm(
            input,
            self.running_mean if updating else None,
            self.running_var if updating else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )


# ---- interpolation ------------------------------------------------------------------------------
