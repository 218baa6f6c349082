"""Builds fastops._C: plain C++ (and CUDA where nvcc is found), with ninja, without torch.

Environment:
  FASTOPS_CUDA=0|1       leave the CUDA kernels out / insist on them (default: in where nvcc is found)
  FASTOPS_CUDA_ARCHS     e.g. "80;90a" (default: the GPU found, else 80;90a); one also as PTX, for later GPUs
  CUDA_HOME              the toolkit (default: where the nvcc on PATH says that it lives)
  MAX_JOBS               parallel compilations (default: ninja's)
  FASTOPS_WERROR=1       warnings are errors
  FASTOPS_BASELINE=1     CPU kernels without AVX2 and AVX-512, as on other processors
  FASTOPS_SANITIZE       e.g. "address,undefined": for debugging
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64") and os.environ.get("FASTOPS_BASELINE") != "1"

# Flags of each instruction set of csrc/isa.h. Every file in csrc/cpu/ is compiled once per set.
ISAS = {"Baseline": []}
if X86:
    ISAS["Avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISAS["Avx512"] = [
        *ISAS["Avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC 12 says so of its own avx512fintrin.h
    ]

WARNINGS = ["-Wall", "-Wextra", "-Werror=return-type"]
CXXFLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
# -Wno-psabi: vectors are passed between inlined functions only, never across the ABI.
CXXFLAGS += ["-Wno-psabi", *WARNINGS]


def say(line: str) -> None:
    print(f"fastops: {line}", file=sys.stderr, flush=True)


def find_cuda_home() -> Path | None:
    """The CUDA toolkit's folder, seen through wrapper scripts and links named nvcc."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (Path(home) / "bin" / "nvcc").exists():
            return Path(home)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        default = Path("/usr/local/cuda")
        return default if (default / "bin" / "nvcc").exists() else None
    # `nvcc --dryrun` prints the settings it works with, TOP among them, whatever wraps it.
    dry = subprocess.run(
        [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else Path(nvcc).resolve().parent.parent


def cuda_archs() -> list[str]:
    """Architectures to compile for, e.g. ["80", "90a"]."""
    given = os.environ.get("FASTOPS_CUDA_ARCHS")
    if given:
        return [a for a in re.split(r"[;,\s]+", given) if a]
    smi = shutil.which("nvidia-smi")
    if smi:
        query = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        found = sorted(
            {c.replace(".", "") for c in re.findall(r"^\d+\.\d+$", answer.stdout, re.MULTILINE)}, key=int
        )
        if found:
            return [a + "a" if int(a) >= 90 else a for a in found]
    return ["80", "90a"]


def gencode(archs: list[str]) -> list[str]:
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    # PTX, so that later GPUs can run it: of the newest architecture that is compiled anyway and is portable
    # ("a" variants are not), or the front end would run a third time for 80;90a, for the same instructions.
    newest = max([a for a in archs if a.isdigit()] or [re.sub(r"\D", "", a) for a in archs], key=int)
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


class Cuda:
    """What building the CUDA half needs; None of it is looked at when it is left out."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.nvcc = home / "bin" / "nvcc"
        self.archs = cuda_archs()
        text = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        release = re.search(r"release (\d+\.\d+)", text)
        self.version = release.group(1) if release else "unknown"

    @staticmethod
    def find() -> Cuda | None:
        wanted = os.environ.get("FASTOPS_CUDA", "")
        if wanted == "0":
            say("FASTOPS_CUDA=0: the CUDA kernels are left out")
            return None
        home = find_cuda_home()
        if home is None:
            if wanted == "1":
                raise SystemExit("fastops: FASTOPS_CUDA=1, but there is no nvcc on PATH nor in CUDA_HOME")
            say("no nvcc found: the CUDA kernels are left out")
            return None
        return Cuda(home)


def escape(path: object) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaFile:
    """The few ninja statements that this build needs."""

    def __init__(self) -> None:
        self.lines = ["ninja_required_version = 1.5"]

    def rule(self, name: str, command: list[str], *, depfile: bool = True) -> None:
        self.lines += [f"rule {name}", f"  command = {' '.join(command)}", f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def build(self, output: Path, rule: str, inputs: list[Path]) -> Path:
        self.lines.append(f"build {escape(output)}: {rule} {' '.join(map(escape, inputs))}")
        return output


class BuildWithNinja(build_ext):
    def build_extension(self, extension: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(extension.name)).resolve()
        # An editable install is given a fresh folder each time; the tree's own makes it incremental.
        temp = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        folder = ((temp if self.editable_mode else Path(self.build_temp)) / "fastops").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)

        cxx = os.environ.get("CXX", "g++")
        sanitize = os.environ.get("FASTOPS_SANITIZE")
        extra = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g1"] if sanitize else []
        strict = os.environ.get("FASTOPS_WERROR") == "1"
        extra += [*(["-Werror"] if strict else []), *os.environ.get("CXXFLAGS", "").split()]
        ldflags = extra + os.environ.get("LDFLAGS", "").split()
        headers = {"python": sysconfig.get_path("include"), "pybind11": pybind11.get_include()}
        includes = [f"-isystem {escape(p)}" for p in headers.values()]
        # Assertions in headers name their files: not where these lie on the machine that builds.
        includes += [f"-ffile-prefix-map={escape(p)}={name}" for name, p in headers.items()]
        defines = ["-DFASTOPS_X86"] if X86 else []
        cuda = Cuda.find()
        if cuda:
            archs = ";".join(cuda.archs)
            defines += [f"'-DFASTOPS_CUDA=\"{cuda.version}\"'", f"'-DFASTOPS_CUDA_ARCHS=\"{archs}\"'"]
            say(f"CUDA {cuda.version} kernels for {archs}, from {cuda.home}")

        ninja = NinjaFile()
        compile_ = [cxx, "-MMD", "-MF", "$out.d", *CXXFLAGS, *extra]
        ninja.rule("host", [*compile_, *defines, *includes, "-c", "$in", "-o", "$out"])
        objects = [
            ninja.build(folder / f"{source.stem}.o", "host", [source])
            for source in sorted(CSRC.glob("*.cpp"))
        ]
        for isa, flags in ISAS.items():
            ninja.rule(isa, [*compile_, *flags, f"-DFASTOPS_ISA=k{isa}", "-c", "$in", "-o", "$out"])
            objects += [
                ninja.build(folder / f"{source.stem}.{isa}.o", isa, [source])
                for source in sorted((CSRC / "cpu").glob("*.cpp"))
            ]
        link = [cxx, "-shared", "$in", "-o", "$out", "-pthread", "-Wl,--exclude-libs,ALL", *ldflags]
        if cuda:
            host_flags = ",".join(["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *extra])
            nvcc = [escape(cuda.nvcc), "-MD", "-MF", "$out.d", "-std=c++17", "-O3", "-lineinfo"]
            nvcc += ["--expt-relaxed-constexpr", "-Xcompiler", host_flags, *gencode(cuda.archs)]
            nvcc += ["-DFASTOPS_SM90A"] if "90a" in cuda.archs else []
            nvcc += ["-Werror", "all-warnings"] if strict else []
            ninja.rule("cuda", [*nvcc, "-c", "$in", "-o", "$out"])
            objects += [
                ninja.build(folder / f"{source.stem}.cuda.o", "cuda", [source])
                for source in sorted((CSRC / "cuda").glob("*.cu"))
            ]
            lib = next(p for p in (cuda.home / "lib64", cuda.home / "lib") if p.exists())
            link += [escape(lib / "libcudart_static.a"), "-ldl", "-lrt"]
        ninja.rule("link", link, depfile=False)
        ninja.build(output, "link", objects)

        (folder / "build.ninja").write_text("\n".join(ninja.lines) + "\n")
        jobs = os.environ.get("MAX_JOBS")
        run = [self.find_ninja(), "-C", str(folder), *(["-j", jobs] if jobs else [])]
        if subprocess.run(run, check=False).returncode != 0:
            raise SystemExit("fastops: the build failed; the compiler's messages are above")

    @staticmethod
    def find_ninja() -> str:
        try:
            import ninja

            return str(Path(ninja.BIN_DIR) / "ninja")
        except ImportError:
            found = shutil.which("ninja")
            if found is None:
                raise SystemExit("fastops: ninja is missing: pip install ninja") from None
            return found


if __name__ == "__main__":
    setup(ext_modules=[Extension("fastops._C", sources=[])], cmdclass={"build_ext": BuildWithNinja})
