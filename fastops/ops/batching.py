"""What the ops' rules for torch.vmap share: the mapped dimension joins the batch or the channels."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Maybe = TypeVar("Maybe", Tensor, Tensor | None)


def shape_of(t: Tensor, dim: int | None) -> tuple[int, ...]:
    """The shape that t has for the function that is mapped."""
    return tuple(t.shape if dim is None else t.movedim(dim, 0).shape[1:])


def in_front(t: Tensor, dim: int | None, size: int) -> Tensor:
    """t with the mapped dimension first, repeated where it has none."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def into_batch(t: Maybe, dim: int | None, size: int) -> Maybe:
    """(size · N, …)"""
    return t if t is None else in_front(t, dim, size).flatten(0, 1)


def into_channels(t: Maybe, dim: int | None, size: int) -> Maybe:
    """(N, size · C, …)"""
    return t if t is None else in_front(t, dim, size).movedim(0, 1).flatten(1, 2)


def out_of_batch(t: Maybe, size: int) -> Maybe:
    """(size, N, …)"""
    return t if t is None else t.unflatten(0, (size, t.shape[0] // size))


def out_of_channels(t: Maybe, size: int) -> Maybe:
    """(size, N, C, …)"""
    return t if t is None else t.unflatten(1, (size, t.shape[1] // size)).movedim(1, 0)
