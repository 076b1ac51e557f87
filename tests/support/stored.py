"""Runs as a study leaves them on disk, and studies, made up: what the tests of tables, figures and report read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regrow_lab.config import RunConfig
from regrow_lab.store.folders import run_folder
from regrow_lab.store.whole_files import write_json
from regrow_lab.studies import Study

LAYERS = {"fc1.weight": 19_200, "fc2.weight": 30_000, "fc3.weight": 1_000}


def made_study(name: str, runs: Sequence[RunConfig], **fields: Any) -> Study:
    """A study of these runs, whatever it is asked for."""
    return Study(name=name, about="", runs=lambda seeds, scale, data: list(runs), cost="", expected="", **fields)


def store_run(
    directory: Path,
    method: str = "rigl",
    sparsity: float = 0.9,
    accuracy: float | None = 97.0,
    seed: int = 0,
    distribution: str | None = None,
    result: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Store a finished run (a diverged one if it has no accuracy); `result` changes fields of its result.json."""
    config = RunConfig(method=method, sparsity=sparsity, distribution=distribution, seed=seed, **settings)
    density = 1 - sparsity
    dense_flops = 2 * sum(LAYERS.values())
    folder = run_folder(directory, config)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_dict())
    fields = {
        "status": "diverged" if accuracy is None else "finished",
        "test_accuracy": accuracy,
        "diverged_at": 17 if accuracy is None else None,
        "sparsity": sparsity,
        "densities": {} if method in ("dense", "small-dense") else dict.fromkeys(LAYERS, density),
        "dense_flops": dense_flops,
        "sparse_flops": round(density * dense_flops),
        "mean_sparse_flops": density * dense_flops,
        "train_flops": 3 * density * dense_flops,
        "train_ratio": density * config.multiplier,
        "test_ratio": density,
        "steps": 1260,
        "weight_steps": 1200,
        "updates": 60,
        "seconds": 0.5,
        "peak_memory_mib": 200.0,
        "torch": "2.13.0",
        "machine": "Linux x86_64, 1 thread",
        "date": "2026-01-02T03:04:05+00:00",
    }
    write_json(folder / "result.json", fields | (result or {}))
    return folder


def store_study(directory: Path) -> None:
    """A small study: three seeds, two sparsities, every group of the table, one seed diverged."""
    for seed, aside in enumerate((-0.2, 0.0, 0.2)):
        store_run(directory, "dense", 0.0, 98.0 + aside, seed)
        for sparsity, loss in ((0.9, 0.0), (0.99, 6.0)):
            store_run(
                directory, "small-dense", sparsity, 93 - loss + aside, seed, result={"sparsity": sparsity - 0.006}
            )
            for distribution, gain in (("uniform", 0.0), ("erk", 0.5)):
                diverges = (sparsity, distribution, seed) == (0.99, "uniform", 2)
                set_ = None if diverges else 95 - loss + gain + aside
                store_run(directory, "set", sparsity, set_, seed, distribution)
                store_run(directory, "rigl", sparsity, 96 - loss + gain + aside, seed, distribution)
                store_run(directory, "rigl", sparsity, 97 - loss + gain + aside, seed, distribution, multiplier=2)
                store_run(directory, "snfs", sparsity, 96.4 - loss + gain + aside, seed, distribution)
            store_run(directory, "snip", sparsity, 96.4 - loss + aside, seed)
            store_run(directory, "pruning", sparsity, 97 - loss + aside, seed)
