"""Output sizes, written once. They may be symbolic, so this is plain arithmetic on integers."""

from __future__ import annotations


def conv_size(size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    """Output size of a convolution along one axis; ``pad`` is the sum of both sides."""
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1


def pooled_size(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    """Output size of a pooling window along one axis, padded by ``pad`` on either side."""
    span = size + 2 * pad - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    out = -(-span // stride) + 1
    # The last window must start inside the input or the left padding.
    return out - 1 if (out - 1) * stride >= size + pad else out
