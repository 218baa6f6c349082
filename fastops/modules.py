"""Layers: subclasses of torch.nn's own classes that override the forward call, and nothing else.

So ``isinstance``, ``repr``, ``state_dict``, copying, pickling and parametrisations are torch's.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastops import functional

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Upsample",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
]

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
