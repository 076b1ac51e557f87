"""One run in its folder: trained, checkpointed, taken up again.

A run is a function of its configuration alone. One that was stopped anywhere and is trained again goes on from its
checkpoint and ends bit-identical to one that was never stopped (on one machine and device).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regrow_lab.config import RunConfig, check_seconds
from regrow_lab.run import checkpoint, checkpoint_files, data_parallel
from regrow_lab.run.machine import device_named
from regrow_lab.run.measurements import result_of
from regrow_lab.run.starting_point import Origin, check_end
from regrow_lab.run.training import Row, Training
from regrow_lab.store import folders, whole_files

FINISHED = -1
"""What the first rank tells the others in place of a step once the run has its result."""
PULSE_SECONDS = 1.0
"""Time between two signs of life inside an epoch."""


@data_parallel.together()
def train(
    config: RunConfig,
    directory: Path,
    *,
    device: str = "cpu",
    checkpoint_seconds: float = 30.0,
    keep_weights: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    pulse: Callable[[Row], None] = lambda row: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train one run in its folder under `directory` and return what its result.json holds.

    A finished run is not trained again. One that was stopped goes on from its checkpoint. The run that this one starts
    from is trained before it, if need be.

    Args:
        config: the run.
        directory: `runs/<run id>` is made under it.
        device: torch's name of the device that holds the net and the whole data set.
        checkpoint_seconds: time between two checkpoints, so that a run shorter than that never writes one.
        keep_weights: leave weights.pt, the final state of the net and its masks, in the folder.
        report: called after every epoch with its line of metrics and the samples a second.
        pulse: called every second or so inside an epoch, with epoch (a fraction), step, train_loss (of the epoch
            before, or None) and samples a second.
        stopping: asked before every step; once it says yes, the run writes its checkpoint and stops.

    Raises:
        ValueError: the configuration names something that does not exist or cannot be, or the run that this one starts
            from diverged; nothing of this run has been written.
        store.ClaimedError: another process trains this run.
        store.StoppedError: the run was stopped, and goes on from there when it is trained again.
        store.LostError: another process of the run is gone; trained again, the run goes on from its last checkpoint.
    """
    check_seconds("checkpoint_seconds", checkpoint_seconds)
    folder = folders.run_folder(directory, config)
    if folders.is_finished(folder):
        folders.sweep(folder)
        return folders.read_result(folder)
    origin, needed = None, config.prerequisite
    if needed is not None:
        home = _home(directory, needed)
        end = train(
            needed,
            home,
            device=device,
            checkpoint_seconds=checkpoint_seconds,
            keep_weights=True,
            pulse=pulse,
            stopping=stopping,
        )
        check_end(config, needed, end)
        origin = Origin.read(folders.run_folder(home, needed), device_named(device))
    training = Training(config, device_named(device), origin)
    if data_parallel.rank() > 0:
        return _follow(training, folder)
    with folders.claim(folder):
        if folders.is_finished(folder):
            data_parallel.told(FINISHED)
            return folders.read_result(folder)
        folders.write_config(folder, config)
        path = folder / "checkpoint.pt"
        if path.exists():
            checkpoint.resume(training, path)
        data_parallel.told(training.step)
        due, next_pulse = time.monotonic() + checkpoint_seconds, time.monotonic() + PULSE_SECONDS

        def before_step() -> None:
            nonlocal due, next_pulse
            now = time.monotonic()
            stop = stopping()
            if now >= due or stop:
                checkpoint.write(path, training)
                due = time.monotonic() + checkpoint_seconds
            if stop:
                raise folders.StoppedError(f"{config.run_id} stopped at step {training.step}, with its checkpoint")
            if now >= next_pulse:
                pulse(training.state_of_progress())
                next_pulse = now + PULSE_SECONDS

        metrics = folder / "metrics.jsonl"
        whole_files.write_lines(metrics, training.rows)
        while not training.done:
            row = training.run_epoch(before_step)
            whole_files.append_line(metrics, row)
            report(row | {"samples_per_second": training.samples_per_second})
        data_parallel.check_masks(training.weights()["masks"])
        result = result_of(training)
        if keep_weights:
            checkpoint_files.save(folder / "weights.pt", checkpoint_files.WEIGHTS, training.weights())
        whole_files.write_json(folder / "result.json", result)
    data_parallel.told(FINISHED)
    folders.sweep(folder)
    return folders.read_result(folder)


def _follow(training: Training, folder: Path) -> dict[str, Any]:
    """What every rank but the first does: the same steps from the same checkpoint. It writes nothing."""
    step = data_parallel.told(0)
    if step > 0:
        checkpoint.resume(training, folder / "checkpoint.pt")
    if step != FINISHED:
        while not training.done:
            training.run_epoch(lambda: None)
        data_parallel.check_masks(training.weights()["masks"])
        data_parallel.told(0)
    return folders.read_result(folder)


def _home(directory: Path, needed: RunConfig) -> Path:
    """Where a run that others start from is trained; beside the others if it is finished but left no weights."""
    folder = folders.run_folder(directory, needed)
    return directory / "again" if folders.is_finished(folder) and not (folder / "weights.pt").exists() else directory
