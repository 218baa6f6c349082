"""One random call: an op, its options, and how its tensors lie in memory; its repr can be pasted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastops.functional as G

# How a tensor lies in memory. Other ranks than 4 know neither channels_last nor transposed planes.
FORMS = ("contiguous", "channels_last", "transposed", "sliced", "expanded", "offset", "reversed")
# What a tensor holds: normal numbers; a few whole numbers, so that there are ties; large, tiny or no numbers;
# NaN and infinities among normal ones.
VALUES = ("normal", "ties", "large", "tiny", "zeros", "special")


@dataclass(frozen=True)
class Call:
    op: str
    shapes: tuple[tuple[int, ...] | None, ...]  # of its tensor arguments, of which some may be None
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    forms: tuple[str, ...] = ()  # of the tensors, and last of dy; contiguous where there is none
    values: str = "normal"
    seed: int = 0

    def form(self, position: int) -> str:
        return self.forms[position] if position < len(self.forms) else "contiguous"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def tensors(self) -> list[Tensor | None]:
        """The arguments. 16-bit values are exact in every wider dtype."""
        generator = torch.Generator().manual_seed(self.seed)
        made = [
            None if shape is None else lay(self._random(shape, generator), self.form(k))
            for k, shape in enumerate(self.shapes)
        ]
        if self.op == "max_unpool2d":
            made[1] = lay(self._indices(generator), self.form(1))
        if self.op == "batch_norm":
            wide = (
                torch.float32 if self.options.get("wide") and made[0].dtype.itemsize == 2 else made[0].dtype
            )
            made[1:5] = [None if t is None else t.to(wide) for t in made[1:5]]
            if made[2] is not None:
                made[2] = made[2].abs() + 0.5
        return made

    def _random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        t = torch.randn(shape, generator=generator)
        if self.dtype == "uint8":
            return (t * 60 + 128).clamp(0, 255).to(torch.uint8)
        large = 8.0 if self.dtype == "float16" else 256.0  # sums of products must not overflow
        scale = {"large": large, "tiny": 2.0**-9, "zeros": 0.0}.get(self.values, 1.0)
        t = t.to(torch.bfloat16) * scale
        if self.values == "ties":
            t = t.round().clamp(-1, 1)
        if self.values == "special" and t.numel():
            for value in (float("nan"), float("inf"), -float("inf")):
                count = max(1, t.numel() // 9)
                t.view(-1)[torch.randint(t.numel(), (count,), generator=generator)] = value
        return t.to(self.torch_dtype)

    def _indices(self, generator: torch.Generator) -> Tensor:
        """For each plane its own distinct places, as far as there are so many; or some outside."""
        shape = self.shapes[0]
        assert shape is not None
        count, plane = shape[-1] * shape[-2], max(1, self.options.get("plane", 1))
        planes = []
        for _ in range(max(0, torch.Size(shape[:-2]).numel())):
            places = torch.randperm(plane, generator=generator)
            places = places.repeat(-(-count // plane))[:count] if count else places[:0]
            planes.append(places)
        indices = torch.stack(planes).view(shape) if planes else torch.zeros(shape, dtype=torch.int64)
        if self.options.get("outside") and indices.numel():
            where = int(torch.randint(indices.numel(), (1,), generator=generator))
            indices.view(-1)[where] = self.options["outside"]
        return indices

    def invoke(self, module: Any, tensors: list[Tensor | None]) -> Any:
        """The call, in torch.nn.functional or fastops.functional; what only fastops has, composed in torch:
        then the value before the ReLU comes second."""
        options = {
            k: v for k, v in self.options.items() if k not in ("plane", "outside", "wide", "activation")
        }
        relu = self.options.get("activation")
        more = {} if relu is None else {"activation": relu}
        if self.op == "batch_norm":
            *tensors, residual = tensors
            if module is G:
                return G.batch_norm(*tensors, **options, residual=residual, **more)  # type: ignore[arg-type]
            y = F.batch_norm(*tensors, **options)  # type: ignore[arg-type]
            y = y if residual is None else y + residual
            return y if relu is None else F.relu(y)
        function = getattr(module, self.op)
        if module is G:
            return function(*tensors, **options, **more)
        y = function(*tensors, **options)
        return y if relu is None else F.relu(y)


def lay(t: Tensor, form: str) -> Tensor:
    """The tensor, laid in memory in one of FORMS; an expanded one repeats its first slice."""
    if form == "channels_last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    if form == "transposed" and t.dim() >= 2:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    if form == "reversed":  # the first dimension innermost
        order = list(range(t.dim()))[::-1]
        return t.permute(order).contiguous().permute(order)
    if form == "sliced" and t.dim() >= 1:
        wide = t.new_zeros((*t.shape[:-1], 2 * t.shape[-1] + 1))
        view = wide[..., 1::2]
        view.copy_(t)
        return view
    if form == "expanded" and t.dim() >= 1:
        dim = 1 if t.dim() == 4 else 0
        return t.narrow(dim, 0, 1).expand_as(t) if t.shape[dim] > 0 else t
    if form == "offset":
        storage = t.new_zeros(t.numel() + 3)
        view = storage[3:].view(t.shape)
        view.copy_(t)
        return view
    return t.contiguous()
