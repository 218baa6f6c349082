"""The main job: a SegNet-style network learns to restore noisy photographs, with torch and with fastops.

Both networks start from the same weights and see the same batches; their steps alternate in one process, so
that whatever else the machine does hits both alike. Prints a table, and draws ``demo.png``.

    python examples/demo.py [--device cuda] [--steps 200] [--out demo.png]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastops

PATCH = (45, 53)  # odd, so that unpooling needs to be told the size that pooling came from
BATCH = 8
NOISE = 0.2


# ---- the network --------------------------------------------------------------------------------


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class Gate(nn.Module):
    """Scales each channel by a factor that follows from the channels' means and maxima."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean, self.peak = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.mix(torch.cat([self.mean(x), self.peak(x)], dim=1)))


class Restorer(nn.Module):
    """SegNet: the decoder unpools to where the encoder's maxima came from; a blurred skip path joins in."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.encode1, self.encode2 = block(3, width), block(width, 2 * width)
        self.middle, self.gate = block(2 * width, 2 * width), Gate(2 * width)
        self.decode2, self.decode1 = block(2 * width, width), block(width, width)
        self.blur = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.join, self.last = block(width + 3, width), nn.Conv2d(width, 3, 3, padding=1)
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.encode1(x)
        y, where1 = self.pool(fine)
        coarse = self.encode2(y)
        y, where2 = self.pool(coarse)
        y = self.gate(self.middle(y))
        y = self.decode2(self.unpool(y, where2, output_size=coarse.shape))
        y = self.decode1(self.unpool(y, where1, output_size=fine.shape))
        skip = self.enlarge(self.blur(x))[..., : x.shape[2], : x.shape[3]]
        return skip + self.last(self.join(torch.cat([y, x - skip], dim=1)))


# ---- the data -----------------------------------------------------------------------------------


class Photographs:
    """Patches of the two photographs that scikit-learn ships. Their middle fifths are kept for testing."""

    def __init__(self, device: str) -> None:
        from sklearn.datasets import load_sample_images

        images = [torch.tensor(i).permute(2, 0, 1) / 255 for i in load_sample_images().images]
        self.device = device
        fifths = [i.chunk(5, dim=2) for i in images]
        self.seen = [torch.cat(pair, dim=2) for f in fifths for pair in (f[:2], f[3:])]
        self.unseen = [f[2] for f in fifths]

    def noisy(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        return clean + NOISE * torch.randn(clean.shape, generator=generator)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(noisy, clean) patches of a step: the same whenever they are asked for."""
        generator = torch.Generator().manual_seed(step)
        (h, w), patches = PATCH, []
        for k in range(BATCH):
            image = self.seen[k % len(self.seen)]
            limits = (image.shape[1] - h + 1, image.shape[2] - w + 1)
            top, left = (int(torch.randint(limit, (), generator=generator)) for limit in limits)
            patches.append(image[:, top : top + h, left : left + w])
        clean = torch.stack(patches)
        return self.noisy(clean, generator).to(self.device), clean.to(self.device)

    def test(self) -> tuple[Tensor, Tensor]:
        """(noisy, clean) parts of the photographs that training does not see."""
        places = [(0, 90), (0, 230), (1, 60), (1, 190)]
        clean = torch.stack([self.unseen[i][:, top : top + 93, 5:122] for i, top in places])
        noisy = self.noisy(clean, torch.Generator().manual_seed(2**31))  # no step's seed
        return noisy.to(self.device), clean.to(self.device)


# ---- training -----------------------------------------------------------------------------------


def networks(device: str) -> dict[str, Restorer]:
    torch.manual_seed(0)
    theirs = Restorer().to(device)
    ours = copy.deepcopy(theirs)
    fastops.convert(ours)
    return {"torch": theirs, "fastops": ours}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    # Not Adam: its first steps turn differences of rounding into steps of full size.
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, noisy: Tensor, clean: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.mse_loss(model(noisy), clean)
    loss.backward()
    optimizer.step()
    return loss.item()


class Progress:
    """A bar on the terminal's last line; where stderr is not a terminal, one line at the end."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.perf_counter()
        self.live = sys.stderr.isatty()

    def advance(self, text: str) -> None:
        self.done += 1
        seconds = time.perf_counter() - self.start
        last = self.done == self.total
        if self.live:
            filled = 30 * self.done // self.total
            left = seconds / self.done * (self.total - self.done)
            bar = "█" * filled + "░" * (30 - filled)
            line = f"\r{bar} {self.done}/{self.total}  {left:3.0f} s left  {text}\033[K"
            print(line, end="\n" if last else "", file=sys.stderr, flush=True)
        elif last:
            print(f"{self.total} steps of both in {seconds:.0f} s, {text}", file=sys.stderr, flush=True)


def train(models: dict[str, Restorer], data: Photographs, steps: int) -> tuple[dict, dict]:
    """Alternates the steps of both networks. Returns losses and seconds of each."""
    optimizers = {name: optimizer_of(model) for name, model in models.items()}
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in optimizers.values()]
    losses: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    progress = Progress(steps)
    for step in range(steps):
        noisy, clean = data.batch(step)
        # Who goes first changes, because the second one finds warm caches.
        for name in sorted(models, reverse=step % 2 == 0):
            synchronize(data.device)
            start = time.perf_counter()
            losses[name].append(train_step(models[name], optimizers[name], noisy, clean))
            synchronize(data.device)
            seconds[name].append(time.perf_counter() - start)
        for schedule in schedules:
            schedule.step()
        progress.advance("loss " + ", ".join(f"{name} {losses[name][-1]:.4f}" for name in models))
    return losses, seconds


# ---- measuring ----------------------------------------------------------------------------------


def peak_memory(name: str, device: str, steps: int = 3) -> int:
    """Bytes that training adds at its peak. Meant for a process of its own, which did nothing else."""
    data, model = Photographs(device), networks(device)[name]
    batches = [data.batch(step) for step in range(steps)]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = torch.cuda.memory_allocated() if device == "cuda" else memory_line("VmRSS")
    optimizer = optimizer_of(model)
    for noisy, clean in batches:
        train_step(model, optimizer, noisy, clean)
    after = torch.cuda.max_memory_allocated() if device == "cuda" else memory_line("VmHWM")
    return after - before


def memory_line(key: str) -> int:
    """Bytes, from a line of /proc/self/status: VmRSS is what is resident, VmHWM its peak."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{key}:")[1].split()[0])


def peak_memory_apart(name: str, device: str) -> int:
    command = [sys.executable, __file__, "--device", device, "--memory-of", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def layer_seconds(
    model: nn.Module, noisy: Tensor, device: str, repeats: int = 15
) -> dict[str, dict[str, list[float]]]:
    """Forward plus backward of the swapped layers on what the network gives them: kind → which → repeats."""
    calls: list[tuple[nn.Module, nn.Module, tuple, dict]] = []

    def note(layer: nn.Module, args: tuple, kwargs: dict, _: object) -> None:
        detached = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        ours = copy.deepcopy(layer)
        ours._forward_hooks.clear()
        fastops.convert(ours)
        calls.append((layer, ours, detached, kwargs))

    report = fastops.convert(copy.deepcopy(model))
    hooks = [
        model.get_submodule(name).register_forward_hook(note, with_kwargs=True) for name in report.swapped
    ]
    model(noisy)
    for hook in hooks:
        hook.remove()
    seconds: dict[str, dict[str, list[float]]] = {}
    for theirs, ours, args, kwargs in calls:
        totals = seconds.setdefault(
            type(theirs).__name__, {"torch": [0.0] * repeats, "fastops": [0.0] * repeats}
        )
        for repeat in range(repeats):
            for which, layer in (("torch", theirs), ("fastops", ours)):
                x = args[0].clone().requires_grad_()
                synchronize(device)
                start = time.perf_counter()
                y = layer(x, *args[1:], **kwargs)
                (y[0] if isinstance(y, tuple) else y).sum().backward()
                synchronize(device)
                totals[which][repeat] += time.perf_counter() - start
    return seconds


def verdict(seconds: dict[str, list[float]]) -> str:
    """Which is faster, and by how much. The steps alternated, so each pair of them saw the same machine."""
    ratios = [ours / theirs for theirs, ours in zip(seconds["torch"], seconds["fastops"], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    if low > 1.03:
        return f"fastops is {ratio:.2f}x slower"
    if high < 0.97:
        return f"fastops is {1 / ratio:.2f}x faster"
    return f"no clear difference ({ratio:.2f} of torch's time)"


# ---- showing ------------------------------------------------------------------------------------


def psnr(image: Tensor, clean: Tensor) -> float:
    return -10 * float(F.mse_loss(image.clamp(0, 1), clean).log10())


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in (0, 3) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def draw(path: str, columns: dict[str, Tensor], losses: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = len(next(iter(columns.values())))
    figure = plt.figure(figsize=(15, 2.0 * rows), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.0, 1))
    axes = left.subplots(rows, len(columns))
    for j, (title, images) in enumerate(columns.items()):
        for i, image in enumerate(images):
            axes[i, j].imshow(image.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            axes[i, j].set_axis_off()
        axes[0, j].set_title(title)
    axis = right.subplots()
    for (name, values), style in zip(losses.items(), ("-", "--"), strict=True):
        axis.plot(np.arange(1, len(values) + 1), values, style, label=name, linewidth=2)
    axis.set(title="training loss", xlabel="step", ylabel="mean squared error", yscale="log")
    axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="demo.png")
    parser.add_argument("--memory-of", choices=("torch", "fastops"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("demo: torch finds no GPU here; `python -m fastops.doctor` says what there is")
    if options.memory_of:
        print(peak_memory(options.memory_of, device))
        return

    models, data = networks(device), Photographs(device)
    swapped = fastops.convert(copy.deepcopy(models["torch"])).swapped
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    count = sum(p.numel() for p in models["torch"].parameters())
    print(
        f"A SegNet of {count} parameters learns to restore photographs, twice: torch {torch.__version__} and"
    )
    print(f"fastops {fastops.__version__} ({len(swapped)} layers swapped), on {where}.", flush=True)
    try:
        losses, seconds = train(models, data, options.steps)
    except NotImplementedError as error:
        sys.exit(f"demo: fastops cannot do this here yet: {error}")

    memory = {name: peak_memory_apart(name, device) for name in models}
    layers = layer_seconds(networks(device)["torch"], data.batch(0)[0], device)
    noisy, clean = data.test()
    with torch.no_grad():
        restored = {name: model.eval()(noisy) for name, model in models.items()}
    parameters = {name: torch.cat([p.flatten() for p in m.parameters()]) for name, m in models.items()}
    difference = float((parameters["torch"] - parameters["fastops"]).detach().abs().max())
    largest = float(parameters["torch"].detach().abs().max())
    seconds = {name: values[len(values) // 10 :] for name, values in seconds.items()}  # warmed up

    names = ("torch", "fastops")
    rows = [
        ("", *names, ""),
        ("first loss", *(f"{losses[n][0]:.5f}" for n in names), ""),
        ("last loss", *(f"{losses[n][-1]:.5f}" for n in names), ""),
        ("unseen photographs, dB", *(f"{psnr(restored[n], clean):.2f}" for n in names),
         f"noisy: {psnr(noisy, clean):.2f}"),
        ("ms per training step", *(f"{1e3 * statistics.median(seconds[n]):.1f}" for n in names),
         verdict(seconds)),
        ("peak memory of training, MB", *(f"{memory[n] / 1e6:.0f}" for n in names), ""),
    ]  # fmt: skip
    rows += [("by kind of layer, forward + backward, ms:", "", "", "")]
    medians = {k: [1e3 * statistics.median(times[n]) for n in names] for k, times in layers.items()}
    for kind in sorted(layers, key=lambda k: -medians[k][0]):
        rows.append((f"  {kind}", *(f"{ms:.2f}" for ms in medians[kind]), verdict(layers[kind])))
    print(table(rows))
    print(f"largest difference of a parameter: {difference:.1e} (the largest parameter is {largest:.1f})")
    slower = [kind for kind, times in layers.items() if "slower" in verdict(times)]
    print(f"kinds of layers that fastops is slower at here: {', '.join(slower) or 'none'}")
    pictures = {f"restored by {n}": restored[n] for n in names}
    draw(options.out, {"noisy": noisy, **pictures, "original": clean}, losses)
    print(f"drawn: {options.out}")


if __name__ == "__main__":
    main()
