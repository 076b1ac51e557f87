"""What a study of 10,000 runs costs beside its training: listing, resuming, reporting.

    python benchmarks/ten_thousand.py [--runs 10000] [--folder DIR]

The runs are made up, files as a study leaves them: 4 methods at 5 sparsities with
100 values of alpha, 5 seeds, 20 lines of metrics each. Seconds are
wall time of one call each, after the files were just written (so they are in the page cache).
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from regrow_lab.config import RunConfig
from regrow_lab.launch import deal
from regrow_lab.launch.outcome import unfinished
from regrow_lab.report.folder_report import write_report
from regrow_lab.report.study_report import Results
from regrow_lab.store import folders

SEEDS = 5
METHODS = ("rigl", "set", "static", "snfs")
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
LAYERS = {"fc1.weight": 0.1, "fc2.weight": 0.1, "fc3.weight": 0.5}


def runs_of(number: int) -> list[RunConfig]:
    alphas = number // (SEEDS * len(METHODS) * len(SPARSITIES))
    return [
        RunConfig(method=method, sparsity=sparsity, drop_fraction=round((alpha + 1) / (alphas + 1), 4), seed=seed)
        for method in METHODS
        for sparsity in SPARSITIES
        for alpha in range(alphas)
        for seed in range(SEEDS)
    ]


def make(directory: Path, runs: list[RunConfig]) -> None:
    for number, run in enumerate(runs):
        folder = folders.run_folder(directory, run)
        folder.mkdir(parents=True)
        rows = [
            {"epoch": epoch, "step": 21 * epoch, "train_loss": 1 / epoch, "sparsity": run.sparsity}
            for epoch in range(1, 21)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "config.json").write_text(json.dumps({"schema": 1, **run.to_dict()}))
        result = {
            "schema": 1,
            "status": "finished",
            "test_accuracy": 97 - 10 * run.sparsity + 0.1 * (number % 7),
            "diverged_at": None,
            "sparsity": run.sparsity,
            "densities": LAYERS,
            "dense_flops": 100_000,
            "sparse_flops": 10_000,
            "train_flops": 30_000.0,
            "train_ratio": 1 - run.sparsity,
            "test_ratio": 1 - run.sparsity,
            "steps": 420,
            "weight_steps": 400,
            "updates": 20,
            "seconds": 0.5,
            "peak_memory_mib": 200.0,
            "torch": "2.13.0",
            "machine": "Linux x86_64, 1 thread",
            "date": "2026-01-02T03:04:05+00:00",
        }
        (folder / "result.json").write_text(json.dumps(result))


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what:<62} {time.perf_counter() - began:8.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.folder or Path(temporary)
        with timed(f"make {options.runs:,} configurations"):
            runs = runs_of(options.runs)
        with timed("names of all runs (hashes)"):
            assert len({run.run_id for run in runs}) == len(runs)
        with timed("write the files (once, by the runs themselves)"):
            make(directory, runs)
        with timed("resume: which runs are not finished"):
            assert not unfinished(runs, directory)
        with timed("deal out to 64 jobs"):
            deal(runs, 64)
        with timed("list: read every config, result and line of metrics"):
            stored = folders.read_runs(directory)
        with timed(f"summarise into {options.runs // SEEDS:,} cells"):
            _ = Results(stored).cells
        with timed("report: tables and figures, all of it"):
            write_report(directory)
        files = sum(len(names) for _, _, names in os.walk(directory))
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        print(f"{files:,} files, {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
