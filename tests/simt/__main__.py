"""Runs pytest in a mode of the emulation: ``python -m tests.simt asan tests -k cuda-emulated``."""

from __future__ import annotations

import os
import sys

from tests.simt import build


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in build.MODES:
        raise SystemExit(f"usage: python -m tests.simt {'|'.join(build.MODES)} [arguments of pytest]")
    mode, arguments = sys.argv[1], sys.argv[2:]
    build.build(mode)
    environment = build.sanitized_environment() if mode == "asan" else {**os.environ, "FASTOPS_SIMT": mode}
    command = [sys.executable, "-m", "pytest", *arguments]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
