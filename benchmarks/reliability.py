"""Runs the tests that hold each promise, faults and fuzzers, and writes their figures into docs/reliability.md.

    python benchmarks/reliability.py [--faults 120] [--fuzz-seconds 20] [--slow]

With --slow the tests marked slow too (a soak of 20,000 steps, the full product of the conformance matrix): some half an
hour on two cores. Fuzzing needs `pip install atheris`.
"""

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
START, END = "<!-- written by benchmarks/reliability.py -->", "<!-- end -->"
PROMISES = {
    "exact counts, dead weights and state exactly 0, masks change only when they should: every recipe × optimizer × "
    "precision × loop": "tests/conformance/test_matrix.py",
    "one compiled graph, whatever the masks": "tests/conformance/test_compiled.py",
    "models from outside: BERT, GPT-2, ViT, nn.Transformer, GRU and LSTM, shared and tied weights, EMA copies": (
        "tests/conformance/test_models.py"
    ),
    "the same in compact storage": "tests/compaction/test_storage.py",
    "strict names what something else wrote; replaced weights and copies are refused": (
        "tests/training/test_strict.py"
    ),
    "long and large: soak, plans without memory, counts beyond 2^31": "tests/conformance/test_large.py",
    "DDP: masks bit-identical on 2 and 4 ranks; parts of a batch give the whole batch's masks": (
        "tests/storage/test_ranks.py"
    ),
    "FSDP2 equals DDP; checkpoints go on on another number of ranks": "tests/storage/test_ranks_fsdp.py",
    "a rank that dies ends the job, the next start goes on": "tests/training/test_ranks_death.py",
    "the same of one run under torchrun, in a line": "tests/lab/test_lost_ranks.py",
    "killed or with a full disk at any moment, a run ends bit-identical": "tests/lab/test_faults.py",
    "SIGTERM and Ctrl-C leave a checkpoint": "tests/lab/test_signals.py",
    "a checkpoint that is cut, flipped, of another run or version is refused by name": "tests/lab/test_checkpoint.py",
    "a sparsifier's state likewise, and nothing has changed then": "tests/training/test_state.py",
    "damaged and hostile files are read or refused, never executed": "tests/lab/test_hostile.py",
    "two processes on one folder share the work; a dead one frees its run": "tests/lab/test_launch.py",
    "shards of a study meet in one folder": "tests/lab/test_shards.py",
    "diverged runs are marked with their step; a stopped run ends as if it had not been": "tests/lab/test_train.py",
    "files of earlier schemas stay readable": "tests/lab/test_fixtures.py",
}


def tested(slow: bool) -> Iterable[str]:
    """A line of the table for each promise."""
    yield "| promise | held by | passed | failed | left out (slow) |"
    yield "|---|---|--:|--:|--:|"
    for promise, path in PROMISES.items():
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", path, *(["--slow"] if slow else [])]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", said)}
        failed = counts.get("failed", 0) + counts.get("error", 0)
        print(f"{path}: {counts}", flush=True)
        link = f"[{path.removeprefix('tests/')}](../{path})"
        yield f"| {promise} | {link} | {counts.get('passed', 0)} | {failed} | {counts.get('skipped', 0)} |"


def faults(number: int) -> Iterable[str]:
    """A line for each kind of fault."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "tests/support/faults.py", folder, "--faults", str(number)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(f"the campaign of faults did not come to its end:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout)
    print(found, flush=True)
    yield "| fault | tried | survived bit for bit |"
    yield "|---|--:|--:|"
    for kind, tried in found["tried"].items():
        yield f"| {kind} | {tried} | {tried - found['lost'].get(kind, 0)} |"
    tried, lost = (sum(found[what].values()) for what in ("tried", "lost"))
    yield f"| **all, over {found['runs']} runs** | **{tried}** | **{tried - lost}** |"


def fuzzed(seconds: int) -> Iterable[str]:
    """A line for each kind of file."""
    command = [sys.executable, "tests/support/fuzz.py", "--runs", "10000000", "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr[-2000:], flush=True)
    yield "| file | tried | broke something |"
    yield "|---|--:|--:|"
    for name, tried in json.loads(done.stdout).items():
        yield f"| {name} | {tried:,} | {int(name + ': ' in done.stderr)} |"


def main() -> None:
    """Run all and rewrite the part of the page between the markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=120)
    parser.add_argument("--fuzz-seconds", type=int, default=20, help="for each kind of file")
    parser.add_argument("--slow", action="store_true")
    options = parser.parse_args()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}"
    how = " ".join(["python benchmarks/reliability.py", *sys.argv[1:]])
    lines = [
        f"Made on {datetime.datetime.now(datetime.UTC):%Y-%m-%d} by `{how}`; {versions}.",
        "",
        *tested(options.slow),
        "",
        *faults(options.faults),
        "",
        f"Fuzzed with atheris for {options.fuzz_seconds} s a kind of file (some build a net for each try):",
        "",
        *fuzzed(options.fuzz_seconds),
    ]
    page = PAGE.read_text()
    before, after = page.partition(START)[0], page.partition(END)[2]
    PAGE.write_text("\n".join([f"{before}{START}", *lines, f"{END}{after}"]))


if __name__ == "__main__":
    main()
