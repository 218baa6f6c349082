"""What the GPU compiler made of each CUDA kernel, read from the objects of the build.

``python -m tests.resources > docs/cuda_resources.md`` writes the table that tests/test_resources.py checks.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastops import _C

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = sorted(
    path
    for path in (ROOT / "build").glob(
        f"temp.*-cpython-{sysconfig.get_python_version().replace('.', '')}/fastops/*.cuda.o"
    )
    # An object whose source is gone is an old build's.
    if (ROOT / "csrc" / "cuda" / path.name.replace(".cuda.o", ".cu")).exists()
)

# Bytes of element types, as they stand in the kernels' template arguments.
ELEMENTS = {"double": 8, "float": 4, "__half": 2, "__nv_bfloat16": 2, "unsigned char": 1}
ELEMENTS |= {"uint4": 16, "uint2": 8, "unsigned int": 4, "unsigned short": 2}


@dataclass
class Kernel:
    """One instantiation, for one architecture."""

    arch: str
    name: str
    arguments: str  # of the template
    registers: int = 0
    shared: int = 0  # bytes, without the dynamic ones
    stack: int = 0  # bytes: spilled registers, and arrays that are not in registers
    # How often SASS has each instruction of SASS below.
    sass: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SASS, 0))

    @property
    def is_vector(self) -> bool:
        """Whether it is to take 16 bytes at a time: <T, 16 / sizeof(T), ...>, Pack<T, ...> and the like.

        Of several element types the narrowest counts; without one the elements are bytes.
        """
        if "LoosePack<" in self.arguments:
            return False
        if "Products<" in self.arguments:  # tensor cores: the last argument says so
            return self.arguments.endswith("true")
        pack = re.search(r"\bPack<([^>]*)>", self.arguments)
        arguments = re.split(r", (?![^<]*>)", pack.group(1) if pack else self.arguments)
        count = next((i for i, a in enumerate(arguments) if a.isdigit()), len(arguments))
        sizes = [ELEMENTS[a] for a in arguments[:count] if a in ELEMENTS]
        return min(sizes, default=1) * int(*arguments[count : count + 1] or (1,)) == 16


SASS = {
    "load": r"\bLDG(?:STS)?\.E\.(?:\w+\.)*128\b",  # LDGSTS: asynchronous, to shared memory
    "store": r"\bSTG\.E\.(?:\w+\.)*128\b",
    "local": r"\b(?:LDL|STL)\b",
    "copy": r"\bLDGSTS\.E\.(?:\w+\.)*128\b",
    "mma": r"\bHMMA\b",
    "wgmma": r"\bHGMMA\b",
    "tma": r"\bUTMALDG\b",
}
_ANY = re.compile("|".join(SASS.values()))


def cuobjdump() -> str | None:
    """The tool: the toolkit's, or the one that Triton brings."""
    triton = importlib.util.find_spec("triton")
    folders = triton.submodule_search_locations if triton else None
    brought = [Path(f) / "backends" / "nvidia" / "bin" / "cuobjdump" for f in folders or ()]
    return shutil.which("cuobjdump") or next((str(p) for p in brought if p.exists()), None)


def why_unavailable() -> str | None:
    if not OBJECTS or not _C.cuda_version:
        return "no CUDA objects: the build is without CUDA, or not in this tree"
    if cuobjdump() is None or shutil.which("c++filt") is None:
        return "cuobjdump (of a toolkit or of Triton) or c++filt is not here"
    return None


def split_name(demangled: str) -> tuple[str, str]:
    """(name, template arguments) of a kernel."""
    text = re.sub(r"\(anonymous namespace\)::|fastops::cuda::", "", demangled.removeprefix("void "))
    name = re.match(r"\w+", text)
    assert name, demangled
    depth, end = 0, name.end()
    while end < len(text) and (depth or text[end] != "("):
        depth += {"<": 1, ">": -1}.get(text[end], 0)
        end += 1
    return name.group(), text[name.end() + 1 : end - 1]


def read(path: Path) -> list[Kernel]:
    """The kernels of an object."""
    tool = cuobjdump()
    assert tool is not None
    found: dict[tuple[str, str], Kernel] = {}
    arch = ""
    usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    lines = (usage.stdout + usage.stderr).splitlines()
    symbols = re.findall(r"Function (\w+):", "\n".join(lines))
    demangled = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    names = dict(zip(symbols, map(split_name, demangled.stdout.splitlines()), strict=True))
    for line in lines:
        if match := re.match(r"arch = (\w+)", line):
            arch = match.group(1)
        elif match := re.search(r"Function (\w+):", line):
            symbol = match.group(1)
        elif "REG:" in line:
            numbers = dict(re.findall(r"(\w+):(\d+)", line))
            kernel = Kernel(arch, *names[symbol])
            kernel.registers, kernel.shared = int(numbers["REG"]), int(numbers["SHARED"])
            kernel.stack = int(numbers["STACK"]) + int(numbers["LOCAL"])
            found[arch, symbol] = kernel
    dump = subprocess.Popen(
        [tool, "-sass", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert dump.stdout is not None
    patterns = {what: re.compile(pattern) for what, pattern in SASS.items()}
    for line in dump.stdout:
        if _ANY.search(line):
            for what, pattern in patterns.items():
                found[arch, symbol].sass[what] += bool(pattern.search(line))
        elif match := re.match(r"arch = (\w+)", line):
            arch = match.group(1)
        elif match := re.search(r"Function : (\w+)", line):
            symbol = match.group(1)
    assert dump.wait() == 0
    return list(found.values())


def table(kernels: list[Kernel]) -> Iterator[str]:
    """Markdown: one line per kernel and architecture."""
    groups: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for k in kernels:
        groups[k.name, k.arch].append(k)
    yield "# What the compiler made of the CUDA kernels"
    yield ""
    yield (
        f"Read from the objects that nvcc {_C.cuda_version} made; written by `python -m tests.resources`, "
        "checked by `tests/test_resources.py`. *Vector* are the instantiations for 16 bytes of elements at a "
        "time; *loads* and *stores* say how many of those have 16-byte accesses of global memory in their "
        "SASS. Shared memory is the static part, in bytes (from sm_90 on with 1 KiB that the system keeps). "
        "*Local* counts instantiations that spill registers or use local memory."
    )
    yield ""
    yield "| kernel | architecture | instantiations | registers | shared | local | vector | loads | stores |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for (name, arch), some in sorted(groups.items()):
        registers = sorted(k.registers for k in some)
        vector = [k for k in some if k.is_vector]
        counts = (
            sum(k.stack > 0 or k.sass["local"] > 0 for k in some),
            len(vector),
            sum(k.sass["load"] > 0 for k in vector),
            sum(k.sass["store"] > 0 for k in vector),
        )
        yield (
            f"| `{name}` | {arch} | {len(some)} | {registers[0]}–{registers[-1]} | "
            f"{max(k.shared for k in some)} | {' | '.join(map(str, counts))} |"
        )


if __name__ == "__main__":
    print("\n".join(table([k for path in OBJECTS for k in read(path)])))
