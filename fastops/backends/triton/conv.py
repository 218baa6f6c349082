"""The convolution's raw ops in Triton: csrc/conv.h. conv_plan.py says by which kernels."""

from __future__ import annotations

from torch import Tensor

from fastops import _C
from fastops.backends.triton import conv_depthwise, conv_gather, conv_tma
from fastops.backends.triton.conv_bias_grad import conv_bias_grad
from fastops.backends.triton.conv_plan import Plan, gather_plan, plan
from fastops.backends.triton.runtime import Run


def planned(p: _C.ConvParams, pass_: _C.ConvPass, plan: Plan) -> Run:
    """One pass by a given plan; of the weight gradient without the bias's."""
    input_grad, weight = pass_ == _C.ConvPass.input_grad, pass_ == _C.ConvPass.weight_grad
    if plan.kernel == "depthwise":
        of_x = conv_depthwise.conv_input_grad if input_grad else conv_depthwise.conv
        return conv_depthwise.weight_grad(p) if weight else of_x(p)
    if plan.kernel == "gather":
        if weight:
            return conv_gather.weight_grad(p, plan.block)
        return conv_gather.product_of(p, input_grad, plan.block)
    by_tma = conv_tma.weight_grad(p, plan.block) if weight else conv_tma.product(p, input_grad, plan.block)
    general = planned(p, pass_, gather_plan(p, pass_))

    def run(*tensors: Tensor | None) -> None:
        aligned = all(t is None or t.data_ptr() % 16 == 0 for t in tensors)
        (by_tma if aligned else general)(*tensors)

    return run


def conv(p: _C.ConvParams) -> Run:
    return planned(p, _C.ConvPass.forward, plan(p, _C.ConvPass.forward))


def conv_input_grad(p: _C.ConvParams) -> Run:
    return planned(p, _C.ConvPass.input_grad, plan(p, _C.ConvPass.input_grad))


def conv_weight_grad(p: _C.ConvParams) -> Run:
    of_w = planned(p, _C.ConvPass.weight_grad, plan(p, _C.ConvPass.weight_grad))
    of_bias = conv_bias_grad(p)

    def run(dy: Tensor, x: Tensor, dw: Tensor, db: Tensor | None) -> None:
        of_w(dy, x, dw)
        if db is not None:
            of_bias(dy, db)

    return run


def conv_backward(p: _C.ConvParams) -> Run:
    of_x, of_w = conv_input_grad(p), conv_weight_grad(p)

    def run(dy: Tensor, x: Tensor, w: Tensor, dx: Tensor, dw: Tensor, db: Tensor | None) -> None:
        of_x(dy, w, None, dx)
        of_w(dy, x, dw, db)

    return run
