"""Runs a minute of the digits study with one worker and with several, and what the launcher costs a run.

    python benchmarks/launching.py [--runs 46] [--workers 1 2]

The overhead of a run is the time that a worker had it in hand less the seconds that the run itself counts, without the
start of the worker, which is measured by itself (an empty study of one short run more or less).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console

from regrow_lab.config import RunConfig
from regrow_lab.launch import Local
from regrow_lab.launch.progress import PlainProgress
from regrow_lab.store import folders
from regrow_lab.studies import study_runs


def measure(runs: list[RunConfig], workers: int) -> tuple[float, float]:
    """Wall time, and the seconds that the runs themselves count."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        outcome = Local(workers=workers).launch(runs, Path(folder), PlainProgress(Console(quiet=True)))
        wall = time.perf_counter() - began
        assert outcome.finished == len(runs)
        return wall, sum((run.result or {})["seconds"] for run in folders.read_runs(Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=46)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    runs = study_runs("digits", 1)[: options.runs]
    short = [RunConfig(epochs=1)]
    print(f"{len(runs)} runs of the digits study, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(f"{'workers':>7} {'wall s':>8} {'start s':>8} {'runs/minute':>12} {'s a run':>8} {'overhead a run':>15}")
    for workers in options.workers:
        start_wall, start_run = measure(short, 1)
        wall, inside = measure(runs, workers)
        start = start_wall - start_run
        overhead = (workers * (wall - start) - inside) / len(runs)
        print(
            f"{workers:>7} {wall:>8.1f} {start:>8.1f} {60 * len(runs) / wall:>12.1f} {inside / len(runs):>8.2f} "
            f"{1000 * overhead:>12.0f} ms"
        )


if __name__ == "__main__":
    main()
