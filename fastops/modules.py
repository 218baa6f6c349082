"""Layers: subclasses of torch.nn's own classes that override the forward call, and nothing else.

So ``isinstance``, ``repr``, ``state_dict``, copying, pickling and parametrisations are torch's.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastops import functional

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d"]

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

# ---- interpolation ------------------------------------------------------------------------------
