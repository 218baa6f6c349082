"""Times calls side by side: interleaved, on fresh data each time, medians with their spread.

On a GPU each contender's calls are captured in a CUDA graph, which leaves the host out, and timed with
events; where a call cannot be captured, its launches are queued instead. Enough sets of operands take turns
that the second-level cache does not hold them. On the CPU it is the wall clock, with the caches flushed by
the other contenders' data.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

Work = Callable[[int], Any]  # computes on the i-th set of operands


class Time(NamedTuple):
    """Seconds of one call: the median of rounds and their extremes; how it was timed."""

    seconds: float
    low: float
    high: float
    how: str


def summary(samples: list[float], how: str) -> Time:
    return Time(statistics.median(samples), min(samples), max(samples), how)


@contextmanager
def _collected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _graph(work: Work, sets: int) -> Callable[[], None]:
    """The calls on all sets, captured from the current stream."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        # Results are kept until the capture ends, so that sets do not share the memory of theirs.
        kept = [work(i) for i in range(sets)]
    finally:
        graph.capture_end()
    del kept
    return graph.replay


def _launches(work: Work, sets: int) -> Callable[[], None]:
    def launch() -> None:
        for i in range(sets):
            work(i)

    return launch


def on_gpu(
    contenders: dict[str, Work], sets: int, *, rounds: int, round_seconds: float, slow: float = 0.2
) -> dict[str, Time]:
    """All contenders' times; a call that takes longer than `slow` seconds is timed once. To be called in a
    stream of its own, in which the operands were made: capturing demands it."""
    stream = torch.cuda.current_stream()

    def timed(calls: Callable[[], Any], repeats: int = 1) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(stream)
        for _ in range(repeats):
            calls()
        end.record(stream)
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    replays: dict[str, tuple[Callable[[], None], str, int]] = {}
    times: dict[str, Time] = {}
    with _collected():
        for name, work in contenders.items():
            work(0)
            first = timed(lambda work=work: work(0))
            if first > slow:
                times[name] = Time(first, first, first, "once")
                continue
            timed(_launches(work, sets))
            try:
                replay, how = _graph(work, sets), "graph"
            except RuntimeError:
                torch.cuda.synchronize()
                replay, how = _launches(work, sets), "launches"
            timed(replay)
            replays[name] = replay, how, max(1, min(1000, round(round_seconds / max(timed(replay), 1e-7))))
        samples: dict[str, list[float]] = {name: [] for name in replays}
        for _ in range(rounds):
            for name, (replay, _, repeats) in replays.items():
                samples[name].append(timed(replay, repeats) / sets)
    return times | {name: summary(s, replays[name][1]) for name, s in samples.items()}


def on_cpu(
    contenders: dict[str, Work], sets: int, *, rounds: int, round_seconds: float, warm: int = 2
) -> dict[str, Time]:
    """All contenders' times."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    with _collected():
        repeats = {}
        for name, work in contenders.items():
            for i in range(warm):
                work(i % sets)
            begin = time.perf_counter()
            work(0)
            repeats[name] = max(1, min(1000, round(round_seconds / (time.perf_counter() - begin))))
        for turn in range(rounds):
            for name, work in contenders.items():
                begin = time.perf_counter()
                for i in range(repeats[name]):
                    work((turn + i) % sets)
                samples[name].append((time.perf_counter() - begin) / repeats[name])
    return {name: summary(s, "wall clock") for name, s in samples.items()}


def wait(device: str) -> None:
    """Until what was launched is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def memory(work: Work, device: str) -> dict[str, int]:
    """The most bytes that a call holds at once of torch's allocator, results included (peak), and what of it
    is not results (workspace). What a library takes from malloc is not seen."""
    if device == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = work(0)
        wait(device)
        most = torch.cuda.max_memory_allocated() - before
    else:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            result = work(0)
        events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        held = list(itertools.accumulate(size for _, size in sorted(changes)))
        most = max(0, *held) if held else 0
    outputs = [result] if isinstance(result, torch.Tensor) else list(result or [])
    return {"peak": most, "workspace": max(0, most - sum(t.untyped_storage().nbytes() for t in outputs))}


def host_seconds(work: Work, calls: int = 200, rounds: int = 9) -> float:
    """Seconds that a call takes until it returns: the median over rounds of a round's mean."""
    cuda = torch.cuda.is_available()
    samples = []
    for _ in range(rounds):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            work(0)
        samples.append((time.perf_counter() - begin) / calls)
    if cuda:
        torch.cuda.synchronize()
    return statistics.median(samples)
