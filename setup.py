"""Builds the compiled part of blip_fast with CMake and Ninja; all metadata is in pyproject.toml.

Environment: BLIP_FAST_CUDA=auto|on|off, BLIP_FAST_CUDA_ARCHS (CMake's notation, e.g. "80-real;90"), MAX_JOBS, CXX.
Without a C++ compiler the package installs without its compiled part, and `blip-fast doctor` says why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_compiler() -> str | None:
    """The C++ compiler that CMake will use, or None."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")


def cmake_options(output: Path) -> list[str]:
    cuda = os.environ.get("BLIP_FAST_CUDA", "auto")
    if cuda not in ("auto", "on", "off"):
        raise SystemExit(f"BLIP_FAST_CUDA is '{cuda}'; expected auto, on or off")
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DBLIP_FAST_OUTPUT_DIR={output}", f"-DBLIP_FAST_CUDA={cuda}"]
    if archs := os.environ.get("BLIP_FAST_CUDA_ARCHS"):
        options.append(f"-DBLIP_FAST_CUDA_ARCHS={archs}")
    return options


class CMakeBuild(build_ext):
    """Runs CMake and Ninja, and records what was built beside the package."""

    def run(self) -> None:
        output = ROOT / "blip_fast" if self.inplace else Path(self.build_lib).resolve() / "blip_fast"
        output.mkdir(parents=True, exist_ok=True)
        if find_compiler() is None:
            reason = "no C++ compiler was found when blip_fast was installed (install g++ and reinstall)"
            print(f"blip_fast: {reason}; the compiled backends are left out", file=sys.stderr)
            self.record(output, reason)
            return
        build = ROOT / "build" / "cmake" if self.inplace else Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        # cmake and ninja from this environment come first; it need not be activated
        env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
        cmake = shutil.which("cmake", path=env["PATH"]) or "cmake"
        # A build folder remembers the tools of the environment that it was made in, which may be gone.
        options = ["-U*Python*", "-Upybind11*", *cmake_options(output)]
        if ninja := shutil.which("ninja", path=env["PATH"]):
            options.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
        subprocess.check_call([cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options], env=env)
        subprocess.check_call([cmake, "--build", str(build), "--parallel", jobs], env=env)
        self.record(output, None)

    def record(self, output: Path, reason: str | None) -> None:
        beside = output / "_build.json.new"
        beside.write_text(json.dumps({"reason": reason}) + "\n")
        beside.replace(output / "_build.json")

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "blip_fast"
        return [str(path) for path in package.glob("*") if path.suffix in (".so", ".json")]


# The extension is named so that wheels carry a platform tag; CMake does the work.
setup(
    packages=[
        *find_packages(include=["blip_fast", "blip_fast.*"]),
        "blip_fast.kernels",
        "blip_fast.benchmarks",
        *(f"blip_fast.{name}" for name in find_packages(include=["benchmarks.*"])),
    ],
    ext_modules=[Extension("blip_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
