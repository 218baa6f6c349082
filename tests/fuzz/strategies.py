"""hypothesis draws calls: mostly ones that are right, some that are not, at the edges more than elsewhere."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.cases.interpolate import TORCH_HAS_LANCZOS
from tests.fuzz.call import FORMS, VALUES, Call

Draw = Any
FLOATING = ("float32", "bfloat16", "float64", "float16")
MODES = (
    *("nearest", "nearest-exact", "bilinear", "bicubic", "area"),
    *(("lanczos",) if TORCH_HAS_LANCZOS else ()),
)


class Sizes:
    """How large tensors may be: small ones are for emulated and interpreted backends."""

    def __init__(self, small: bool) -> None:
        most = 7 if small else 14
        self.batch = st.sampled_from((1, 2, 1, 0) if small else (1, 2, 3, 1, 2, 0, 5))
        around = (
            (1, 2, 3, 4, 5, 7, 8, 9, 0)
            if small
            else (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 19, 31, 32, 33, 40, 0)
        )
        self.channels = st.sampled_from(around)
        self.extent = st.one_of(
            st.integers(1, most), st.sampled_from((1, 2, 8) if small else (1, 0, 16, 17, 32, 33))
        )
        self.kernel = st.one_of(st.integers(1, 3), st.integers(1, 4 if small else 7))


def pair(numbers: Any) -> Any:
    """One number, or one for each axis."""
    return st.one_of(numbers, st.tuples(numbers, numbers))


def both(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def image(draw: Draw, sizes: Sizes) -> tuple[int, ...]:
    shape = (draw(sizes.batch), draw(sizes.channels), draw(sizes.extent), draw(sizes.extent))
    return shape[1:] if draw(st.integers(0, 9)) == 0 else shape


def some(draw: Draw, options: dict[str, Any]) -> dict[str, Any]:
    """Each option or not: defaults are used too."""
    return {k: draw(v) for k, v in options.items() if draw(st.booleans())}


def finish(
    draw: Draw, op: str, shapes: tuple[Any, ...], options: dict[str, Any], special: bool = False
) -> Call:
    forms = st.sampled_from(("contiguous", "channels_last", *FORMS))
    return Call(
        op,
        shapes,
        options,
        draw(st.sampled_from((*FLOATING, "uint8") if op == "interpolate" else FLOATING)),
        tuple(draw(forms) for _ in range(len(shapes) + 1)),
        draw(st.sampled_from(("normal", "normal", *(VALUES if special else VALUES[:-1])))),
        draw(st.integers(0, 2**16)),
    )


def conv(draw: Draw, sizes: Sizes, op: str) -> Call:
    x = image(draw, sizes)
    channels = x[-3]
    kernel = draw(sizes.kernel), draw(sizes.kernel)
    groups = draw(st.sampled_from((1, 1, 1, channels or 1, 2, 3)))
    other = draw(sizes.channels)
    out = groups * draw(st.integers(1, 3)) if groups > 1 else other
    inner = channels // groups if draw(st.integers(0, 19)) else channels
    w = (out, inner, *kernel) if op == "conv2d" else (channels, out // groups, *kernel)
    bias = (out,) if draw(st.booleans()) else None
    options = some(
        draw,
        dict(
            stride=pair(st.integers(1, 4)),
            padding=pair(st.integers(0, 4)),
            dilation=pair(st.integers(1, 3)),
            **(
                dict(activation=st.just("relu"))
                if op == "conv2d"
                else dict(output_padding=pair(st.integers(0, 2)))
            ),
        ),
    )
    if op == "conv2d" and draw(st.integers(0, 9)) == 0:
        options["padding"] = draw(st.sampled_from(("same", "valid")))
    if groups > 1 or draw(st.booleans()):
        options["groups"] = groups
    return finish(draw, op, (x, w, bias), options)


def pool(draw: Draw, sizes: Sizes, op: str) -> Call:
    x = image(draw, sizes)
    kernel = draw(pair(sizes.kernel))
    padding = tuple(draw(st.integers(0, k // 2 + (draw(st.integers(0, 19)) == 0))) for k in both(kernel))
    options = dict(kernel_size=kernel) | some(
        draw, dict(stride=pair(st.integers(1, 5)), padding=st.just(padding), ceil_mode=st.booleans())
    )
    if op == "avg_pool2d":
        options |= some(draw, dict(count_include_pad=st.booleans(), divisor_override=st.integers(-3, 5)))
    else:
        options |= some(draw, dict(dilation=pair(st.integers(1, 3)), return_indices=st.booleans()))
    return finish(draw, op, (x,), options, special=True)


def adaptive(draw: Draw, sizes: Sizes, op: str) -> Call:
    x = image(draw, sizes)
    number = st.one_of(sizes.extent, st.none())
    options: dict[str, Any] = dict(output_size=draw(st.one_of(sizes.extent, st.tuples(number, number))))
    if op == "adaptive_max_pool2d":
        options |= some(draw, dict(return_indices=st.booleans()))
    return finish(draw, op, (x,), options, special=True)


def unpool(draw: Draw, sizes: Sizes, op: str) -> Call:
    x = image(draw, sizes)
    kernel = draw(pair(st.integers(1, 4)))
    options = dict(kernel_size=kernel) | some(
        draw, dict(stride=pair(st.integers(1, 4)), padding=pair(st.integers(0, 1)))
    )
    stride, pad = both(options.get("stride", kernel)), both(options.get("padding", 0))
    size = [(i - 1) * s + k - 2 * p for i, s, k, p in zip(x[-2:], stride, both(kernel), pad, strict=True)]
    if draw(st.booleans()):
        size = [
            i + draw(st.integers(1 - s, s - 1 + (draw(st.integers(0, 19)) == 0)))
            for i, s in zip(size, stride, strict=True)
        ]
        options["output_size"] = tuple(size)
    plane = size[0] * size[1]
    options["plane"] = plane
    if draw(st.integers(0, 19)) == 0:
        options["outside"] = draw(st.sampled_from((plane, -1, plane + 2**31, -(2**40), 2**62)))
    return finish(draw, op, (x, x), options)


def batch_norm(draw: Draw, sizes: Sizes, op: str) -> Call:
    rank = draw(st.sampled_from((4, 4, 4, 2, 3, 5)))
    x = (draw(sizes.batch), draw(sizes.channels), *(draw(sizes.extent) for _ in range(rank - 2)))
    if rank == 5:
        x = (*x[:2], *(min(s, 4) for s in x[2:]))
    c = (x[1],)
    statistics = draw(st.booleans())
    options: dict[str, Any] = dict(training=draw(st.booleans()))
    options |= some(
        draw,
        dict(momentum=st.sampled_from((0.1, 0.0, 1.0, 1.5, 0.37)), eps=st.sampled_from((1e-5, 1e-3, 0.5))),
    )
    if draw(st.booleans()):
        options["wide"] = True
    if draw(st.booleans()):
        options["activation"] = "relu"
    affine = [c if draw(st.integers(0, 3)) else None for _ in range(2)]
    residual = x if draw(st.booleans()) else None
    if not options["training"] and draw(st.integers(0, 19)):
        statistics = True
    return finish(draw, op, (x, *([c, c] if statistics else [None, None]), *affine, residual), options)


def interpolate(draw: Draw, sizes: Sizes, op: str) -> Call:
    x = (draw(sizes.batch), draw(sizes.channels), draw(sizes.extent), draw(sizes.extent))
    mode = draw(st.sampled_from(MODES))
    options: dict[str, Any] = dict(mode=mode)  # uint8 has no area mode: both raise
    if draw(st.booleans()):
        options["size"] = draw(pair(sizes.extent))
    else:
        factor = st.one_of(st.sampled_from((2.0, 0.5, 1.0, 3, 1.5, 2.3)), st.floats(0.25, 3.5, width=16))
        options["scale_factor"] = draw(pair(factor))
        options |= some(draw, dict(recompute_scale_factor=st.booleans()))
    if mode in ("bilinear", "bicubic"):
        options |= some(draw, dict(align_corners=st.booleans(), antialias=st.booleans()))
    if mode == "lanczos":  # neither torch nor fastops has it without antialiasing
        options["antialias"] = draw(st.sampled_from((True, True, True, False)))
    return finish(draw, op, (x,), options)


def calls(op: str, small: bool = False) -> st.SearchStrategy[Call]:
    """Calls of one op."""
    sizes = Sizes(small)
    family = {
        "conv2d": conv,
        "conv_transpose2d": conv,
        "avg_pool2d": pool,
        "max_pool2d": pool,
        "adaptive_avg_pool2d": adaptive,
        "adaptive_max_pool2d": adaptive,
        "max_unpool2d": unpool,
        "batch_norm": batch_norm,
        "interpolate": interpolate,
    }[op]
    return st.composite(lambda draw: family(draw, sizes, op))()
