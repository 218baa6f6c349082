"""Wrong backward passes: autograd's own checks must see what fastops saved."""

from __future__ import annotations

from tests.wrong.row import Row, because

GRADIENTS: list[Row] = [
    *because(
        "what the backward needs has been changed in place",
        "changed(lambda x, w: conv2d(x, w), x, w, change=0, wrt=1)",
        "changed(lambda x, w: conv2d(x, w), x, w, change=1, wrt=0)",
        "changed(lambda x, v: conv_transpose2d(x, v), x, v, change=0, wrt=1)",
        "changed(lambda x, v: conv_transpose2d(x, v), x, v, change=1, wrt=0)",
        "changed(lambda x, g: batch_norm(x, rm, rv, g), x, g, change=0, wrt=1)",
        "changed(lambda x, g: batch_norm(x, rm, rv, g), x, g, change=1, wrt=0)",
        "changed(lambda x, g: batch_norm(x, None, None, g, training=True), x, g, change=0, wrt=1)",
        "changed(lambda x, g: batch_norm(x, None, None, g, training=True), x, g, change=1, wrt=0)",
    ),
    *because(
        "a graph is freed by the first backward",
        "twice(lambda x: conv2d(x, w), x)",
        "twice(lambda x: max_pool2d(x, 2), x)",
        "twice(lambda x: adaptive_max_pool2d(x, 2), x)",
        "twice(lambda x: batch_norm(x, rm, rv, training=False), x)",
        "twice(lambda y: max_unpool2d(y, i, 2), y)",
    ),
    *because(
        "dy has another shape than y",
        *(
            f"pulled(lambda x: {call}, x, e(2, 4, 5, 5))"
            for call in (
                "avg_pool2d(x, 2)",
                "adaptive_avg_pool2d(x, 2)",
                "max_pool2d(x, 2)",
                "adaptive_max_pool2d(x, 2)",
                "conv2d(x, w)",
                "conv_transpose2d(x, v)",
                "batch_norm(x, rm, rv)",
                "interpolate(x, 4, mode='bilinear')",
            )
        ),
    ),
    *because(
        "dy is no tensor, or of another device",
        "pulled(lambda x: avg_pool2d(x, 2), x, 1.0)",
        "pulled(lambda x: conv2d(x, w), x, array)",
        "pulled(lambda x: conv2d(x, w), x, None)",
        "pulled(lambda x: max_pool2d(x, 2), x, e(2, 4, 3, 3).to('meta'))",
        "pulled(lambda x: batch_norm(x, rm, rv), x, e(2, 4, 6, 6).to('meta'))",
    ),
    *because(
        "running statistics are no place for a gradient to go",
        "batch_norm(x, rm.requires_grad_(), rv, training=True)",
        "batch_norm(x, rm, rv.requires_grad_(), training=True)",
        "batch_norm(x, rm, rv.requires_grad_())",
        "batch_norm(x, rm.requires_grad_() * 1, rv, training=True)",
        "batch_norm(x, rm, rv.requires_grad_()[:], training=True)",
    ),
    *because(
        "a backward may not keep an inference tensor",
        "conv2d(inference(x), w.requires_grad_())",
        "conv2d(x.requires_grad_(), inference(w))",
        "conv_transpose2d(inference(x), v.requires_grad_())",
        "conv_transpose2d(x.requires_grad_(), inference(v))",
        "batch_norm(inference(x), None, None, g.requires_grad_(), b, True)",
        "batch_norm(x.requires_grad_(), None, None, inference(g), b, True)",
        "max_unpool2d(y.requires_grad_(), inference(i), 2)",
    ),
]
