"""Wheels and source distributions: built here, installed elsewhere, imported from outside the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from blip_fast import native

ROOT = Path(__file__).parents[2]
SITE = Path(torch.__file__).parents[1]
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), str(SITE.parents[2] / "bin"), os.environ["PATH"]])


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PATH": TOOLS} | environment
    return subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what git tracks (or would), as a fresh clone has it."""
    folder = tmp_path_factory.mktemp("source")
    files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT)
    names = files.stdout.splitlines() if files.returncode == 0 else []
    if not names:
        pytest.skip("not a git checkout")
    for name in names:
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(kind: str, source: Path, output: Path, **environment: str) -> Path:
    code = f"import setuptools.build_meta as b; print('BUILT', b.build_{kind}({str(output)!r}))"
    done = run(sys.executable, "-c", code, cwd=source, BLIP_FAST_CUDA="off", **environment)
    shutil.rmtree(source / "build", ignore_errors=True)  # setuptools would pack it the next time
    assert done.returncode == 0, done.stdout + done.stderr
    return output / re.search(r"BUILT (.+)", done.stdout).group(1)


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory) -> Path:
    """The source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.unpack_archive(build("sdist", source, folder), folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory) -> Path:
    """Built from the source distribution."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_without_compiler(source, tmp_path_factory) -> Path:
    """Built from ``source`` where nothing can be compiled."""
    tools = tmp_path_factory.mktemp("bin")
    for tool in ("git", "sh", "uname"):
        if path := shutil.which(tool):
            (tools / tool).symlink_to(path)
    return build("wheel", source, tmp_path_factory.mktemp("wheel"), PATH=str(tools))


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """A virtual environment that sees this one's packages except blip_fast, made anew for each wheel."""

    def make(wheel: Path) -> Path:
        folder = tmp_path_factory.mktemp("venv")
        venv.create(folder, with_pip=False)
        site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        shutil.unpack_archive(wheel, site, "zip")
        (site / "packages.pth").write_text(f"{SITE}\n")
        return folder / "bin" / "python"

    return make


CHECK = """
import blip_fast, blip_fast.benchmarks.ops.momentum, blip_fast.kernels, blip_fast.ops, torch
from blip_fast import native
assert 'site-packages' in blip_fast.__file__ and 'site-packages' in blip_fast.kernels.__file__, blip_fast.__file__
copy = [torch.ones(3)]
blip_fast.ops.momentum_update_(copy, [torch.zeros(3)], 0.25)
assert copy[0].tolist() == [0.25] * 3
print(native.load_error())
"""


def test_wheel_works_outside_the_repository(wheel, tmp_path, other_python):
    done = run(other_python(wheel), "-c", CHECK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"


def test_nothing_is_missing_from_the_sdist(unpacked, wheel, wheel_without_compiler):
    from_sdist, from_source = (set(zipfile.ZipFile(w).namelist()) for w in (wheel, wheel_without_compiler))
    assert {name for name in from_sdist if not name.endswith(".so")} == from_source
    assert {name.split(".")[0] for name in from_sdist - from_source} == {"blip_fast/libblip_fast", "blip_fast/_C"}
    assert (unpacked / "benchmarks" / "results" / "aot.json").is_file()  # what `make bench` reads
    assert not (unpacked / "tests").exists()  # they need files that are not shipped


def test_metadata_name_the_licences_of_all_that_is_shipped(source, tmp_path):
    code = f"import setuptools.build_meta as b; b.prepare_metadata_for_build_wheel({str(tmp_path)!r})"
    done = run(sys.executable, "-c", code, cwd=source)
    assert done.returncode == 0, done.stderr
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    files = set(re.findall(r"^License-File: (.+)$", metadata.read_text(), re.MULTILINE))
    shipped = [path.relative_to(source) for name in ("LICENSE*", "ATTRIBUTION*") for path in source.rglob(name)]
    assert files == {str(path) for path in shipped}
    assert "License-Expression: BSD-3-Clause AND Apache-2.0 AND " in metadata.read_text()


def test_without_a_compiler_it_installs_and_says_so(wheel_without_compiler, tmp_path, other_python):
    done = run(other_python(wheel_without_compiler), "-c", CHECK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler was found" in done.stdout


def test_cuda_on_without_nvcc_is_a_clear_error(source, tmp_path):
    options = ["-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", "-DBLIP_FAST_CUDA=on"]
    missing = "-DCMAKE_CUDA_COMPILER=CMAKE_CUDA_COMPILER-NOTFOUND"
    done = run("cmake", "-S", source, "-B", tmp_path, *options, missing, cwd=tmp_path)
    assert done.returncode != 0
    assert "BLIP_FAST_CUDA=on needs nvcc" in re.sub(r"\s+", " ", done.stderr)


def test_library_uses_the_stable_abi_only():
    if native.load_error():
        pytest.fail(native.load_error())
    done = run("nm", "-D", "--undefined-only", native.LIBRARY, cwd=ROOT)
    if done.returncode:
        pytest.skip("nm is not installed")
    unstable = [line for line in done.stdout.splitlines() if re.search(r"_ZNK?(2at|3c10|5torch)", line)]
    assert unstable == []
    assert "aoti_torch_library_def" in done.stdout


def test_cuda_code_is_built_where_nvcc_is():
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    info = native.build_info()
    assert info["cuda"], "nvcc is on the PATH but the CUDA code was not built"
    assert info["cuda_archs"]
