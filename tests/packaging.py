"""Building and installing the package as users do: what tests/test_install.py and the scoreboard share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import fastops

ROOT = Path(__file__).resolve().parent.parent


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that must succeed."""
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def build_sdist(folder: Path) -> Path:
    """The archive. Built from the tree's tracked files, as a clean clone has them."""
    run(sys.executable, "setup.py", "-q", "egg_info", "-e", folder, "sdist", "-d", folder, cwd=ROOT)
    (archive,) = folder.glob("fastops-*.tar.gz")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        # (Before Python 3.10.12 and 3.11.4 tarfile has no filters.)
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / archive.name.removesuffix(".tar.gz")


def missing_from_sdist(unpacked: Path) -> list[str]:
    """Files that belong into it and are not there."""
    tracked = run("git", "ls-files", cwd=ROOT).stdout.split() if (ROOT / ".git").exists() else []
    folders = ("csrc", "fastops", "tests", "examples", "docs", "bench")
    wanted = [f for f in tracked if f.split("/")[0] in folders]
    wanted += ["setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"]
    return [f for f in wanted if not (unpacked / f).exists()]


def build_wheel(
    source: Path, folder: Path, *options: str, python: object = sys.executable, **environment: str
) -> tuple[Path, str]:
    """A wheel without CUDA kernels from an sdist, and what its build printed."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [python, "-m", "pip", "wheel", "-v", "--no-deps", *options, "-w", folder, source]
    done = run(*pip, cwd=folder, **{"FASTOPS_CUDA": "0", **environment})
    (path,) = folder.glob("fastops-*.whl")
    return path, done.stdout + done.stderr


def check_wheel(path: Path) -> None:
    """Everything that belongs into it, and nothing else."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        modules = [n for n in names if n.startswith("fastops/_C.") and n.endswith(".so")]
        assert len(modules) == 1, modules
    package = ROOT / "fastops"
    wanted = {f"fastops/{p.relative_to(package)}" for p in package.rglob("*.py")}
    wanted |= {"fastops/py.typed", "fastops/_C.pyi"}
    assert wanted <= names, wanted - names
    information = re.escape(metadata.split("/")[0])
    others = [n for n in names - wanted - set(modules) if not re.match(information + "/", n)]
    assert others == [], others
    assert any(n.endswith("LICENSE") for n in names)
    assert f"Version: {fastops.__version__}" in text
    assert "Requires-Dist: torch>=" in text


def paths_in(wheel: Path) -> list[str]:
    """What the compiled module tells of the machine that it was built on."""
    with zipfile.ZipFile(wheel) as archive:
        (compiled,) = (archive.read(n) for n in archive.namelist() if n.endswith(".so"))
    places = {
        str(ROOT),
        str(Path.home()),
        sys.prefix,
        sysconfig.get_path("include"),
        "/tmp/",
        "pip-build-env",
    }
    strings = re.findall(rb"[\x20-\x7e]{6,}", compiled)
    return [s.decode() for s in strings if any(p in s.decode() for p in places if len(p) > 1)]
