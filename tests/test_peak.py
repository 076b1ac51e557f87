"""benchmarks/peak.cpp: compiles for each instruction set that the compiler knows, and runs for this machine's."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "benchmarks" / "peak.cpp"
COMPILER = shutil.which("g++") or shutil.which("clang++")
SETS = {
    "baseline": "-march=x86-64",
    "avx2": "-march=haswell",
    "avx512": "-march=skylake-avx512",
    "avx512_bf16": "-march=cooperlake",
    "amx": "-march=sapphirerapids",
}
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler (g++ or clang++)")


def build(architecture: str, to: Path) -> subprocess.CompletedProcess[str]:
    assert COMPILER is not None
    # GCC 12 warns of its own header.
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-maybe-uninitialized", architecture]
    return subprocess.run([COMPILER, *flags, str(SOURCE), "-o", str(to)], capture_output=True, text=True)


def test_it_runs_here_and_says_for_which_instruction_set(tmp_path: Path) -> None:
    done = build("-march=native", tmp_path / "peak")
    assert done.returncode == 0, done.stderr
    said = subprocess.run([tmp_path / "peak", "1"], capture_output=True, text=True, check=True).stdout.splitlines()
    name, _, vector = said[0].removeprefix("instruction set: ").partition(", vectors of ")
    assert name in SETS
    assert vector in ("16 bytes", "32 bytes", "64 bytes")
    rates = [line.split()[-2:] for line in said[1:]]
    assert len(rates) >= 14
    assert all(float(rate) > 0 and unit in ("GFLOP/s", "GB/s") for rate, unit in rates)
    wrong = subprocess.run([tmp_path / "peak", "none"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "the number of tries must be 1 or more, given none\n")


@pytest.mark.parametrize("name", SETS)
def test_it_compiles_for_every_instruction_set(name: str, tmp_path: Path) -> None:
    done = build(SETS[name], tmp_path / "peak")
    if "for '-march='" in done.stderr or "unknown target CPU" in done.stderr:
        pytest.skip(f"the compiler does not know {SETS[name]}")
    assert done.returncode == 0, done.stderr
    assert f"{name}\0".encode() in (tmp_path / "peak").read_bytes()
    run = subprocess.run([tmp_path / "peak", "1"], capture_output=True, text=True)
    assert run.stdout.startswith(f"instruction set: {name}, ") or (
        run.stderr == f"compiled for {name}, which this CPU does not have: compile it here\n" and run.returncode == 2
    )
