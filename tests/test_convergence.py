"""A small convolutional net learns sklearn's digits, with torch's layers and with fastops', from one seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastops


def net(lib: Any) -> nn.Sequential:
    return nn.Sequential(
        lib.Conv2d(1, 16, 3, padding=1, bias=False),
        lib.BatchNorm2d(16),
        nn.ReLU(),
        lib.MaxPool2d(2),
        lib.Conv2d(16, 32, 3, padding=1, bias=False),
        lib.BatchNorm2d(32),
        nn.ReLU(),
        lib.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.from_numpy(data.target)[order]


def train(lib: Any, x: Tensor, target: Tensor, epochs: int = 5) -> tuple[list[float], float]:
    """The loss of every step, and the accuracy on the fifth of the digits that was held out."""
    torch.manual_seed(0)
    model = net(lib)
    held_out = len(x) // 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(len(x) - held_out, generator=torch.Generator().manual_seed(epoch)) + held_out
        for batch in order.split(64):
            loss = F.cross_entropy(model(x[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        right = model(x[:held_out]).argmax(1) == target[:held_out]
    return losses, right.float().mean().item()


def test_digits() -> None:
    x, target = digits()
    our_losses, our_accuracy = train(fastops, x, target)
    their_losses, their_accuracy = train(nn, x, target)
    # The first steps differ by rounding only; it grows from step to step, as it does between two BLAS.
    for step in range(5):
        assert our_losses[step] == pytest.approx(their_losses[step], rel=1e-4), f"step {step}"
    last = slice(-20, None)
    ours, theirs = sum(our_losses[last]) / 20, sum(their_losses[last]) / 20
    assert ours == pytest.approx(theirs, abs=0.02)
    assert min(our_accuracy, their_accuracy) > 0.95
    assert abs(our_accuracy - their_accuracy) < 0.015, f"{our_accuracy:.3f}, torch {their_accuracy:.3f}"
    again, _ = train(fastops, x, target, epochs=1)
    assert again == our_losses[: len(again)], "a second run gives other bits"
