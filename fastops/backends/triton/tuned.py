"""What fastops.tune has measured on this user's GPUs, in a file: read once, written as a whole.

FASTOPS_TUNED names the file; by default it is fastops/triton.json in the user's cache ($XDG_CACHE_HOME, or
~/.cache). A file of other versions, or one that cannot be read, is as none.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton

import fastops

# Of the file's form, and of the kernels and configurations that it speaks of.
FORMAT = 1

# kernel, rows, columns, depth, warps, stages
Choice = tuple[str, int, int, int, int, int]


def path() -> Path:
    named = os.environ.get("FASTOPS_TUNED")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fastops" / "triton.json"


def versions() -> dict[str, Any]:
    return {"format": FORMAT, "fastops": fastops.__version__, "triton": triton.__version__}


def device() -> str:
    """The current GPU's name."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def key(pass_: str, params: Any) -> str:
    return f"{pass_} {params!r}"


def _valid(choice: Any) -> bool:
    name, *numbers = choice
    known = name in ("depthwise", "gather", "tma") and len(numbers) == 5
    return known and all(type(n) is int and n >= 0 for n in numbers)


@lru_cache(maxsize=1)
def load() -> dict[str, dict[str, Choice]]:
    """By device, then by key."""
    try:
        found = json.loads(path().read_text())
        if {k: found[k] for k in versions()} != versions():
            return {}
        devices = {
            name: {k: tuple(v) for k, v in some.items() if _valid(v)}
            for name, some in found["devices"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return devices  # type: ignore[return-value]


def choice(pass_: str, params: Any) -> Choice | None:
    """What was measured to be the fastest for this GPU."""
    known = load()
    return known.get(device(), {}).get(key(pass_, params)) if known else None


def store(found: dict[str, Choice]) -> Path:
    """Adds choices for the current GPU to the file. Readers see the old file or the new one; of writers at
    the same time one waits for the other."""
    to = path()
    to.parent.mkdir(parents=True, exist_ok=True)
    with open(to.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load.cache_clear()
        devices = load()
        devices[device()] = {**devices.get(device(), {}), **found}
        with tempfile.NamedTemporaryFile("w", dir=to.parent, delete=False) as new:
            json.dump({**versions(), "devices": devices}, new, indent=1)
        os.replace(new.name, to)
        load.cache_clear()
    return to
