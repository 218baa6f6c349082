"""Layers: subclasses of torch.nn's own classes that override the forward call, and nothing else.

So ``isinstance``, ``repr``, ``state_dict``, copying, pickling and parametrisations are torch's.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastops import functional

__all__ = ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d", "MaxPool2d", "MaxUnpool2d"]

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

# ---- interpolation ------------------------------------------------------------------------------
