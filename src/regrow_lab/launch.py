"""A study on one machine: a few long-lived worker processes, one thread each, many runs one after another in each.

torch's import takes longer than a short run, so a process is never started for one run. This module does not import
torch; the workers do.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from regrow_lab import store
from regrow_lab.config import RunConfig
from regrow_lab.progress import Progress

TRIES = 3
"""How often a run is started whose worker dies."""
MESSAGE_SECONDS = 0.25
"""Time between two messages of a worker about the run it has in hand."""
CLAIMED_SECONDS = 0.5
"""Time that a worker waits after it met a run of another process."""


class WorkerError(Exception):
    """No worker can be started on this machine."""


@dataclass
class Outcome:
    """What became of the runs: how many were finished before and now, which diverged, which failed and why."""

    before: int = 0
    finished: int = 0
    diverged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def default_workers() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(
    runs: Sequence[RunConfig],
    directory: Path,
    *,
    workers: int,
    progress: Progress,
    device: str = "cpu",
    checkpoint_seconds: float = 30.0,
) -> Outcome:
    """Train all `runs` that are not finished under `directory`, each once, and say what became of them.

    It may be killed at any moment and called again. Runs that another process has in hand are waited for, and taken
    over should that process die. A run whose worker dies is started again, three times in all.

    Raises:
        ValueError: fewer workers than one.
        WorkerError: the workers die before they can begin; nothing is lost.
    """
    if workers < 1:
        raise ValueError(f"a study needs 1 worker or more, given {workers}")
    pending = [config for config in runs if not store.is_finished(store.run_folder(directory, config))]
    needed = frozenset(config.prerequisite.run_id for config in runs if config.prerequisite)
    pool = _Pool(directory, device, checkpoint_seconds, progress, Outcome(before=len(runs) - len(pending)), needed)
    progress.begin(total=len(runs), finished=len(runs) - len(pending))
    try:
        pool.train(pending, workers)
    finally:
        pool.close()
        progress.end()
    return pool.outcome


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    run: RunConfig | None = None
    ready: bool = False


class _Pool:
    def __init__(
        self,
        directory: Path,
        device: str,
        checkpoint_seconds: float,
        progress: Progress,
        outcome: Outcome,
        needed: frozenset[str],
    ) -> None:
        self.arguments = (directory, device, checkpoint_seconds)
        self.directory = directory
        self.progress = progress
        self.outcome = outcome
        self.needed = needed  # runs that leave their weights, as others start from them
        self.workers: list[_Worker] = []
        self.queue: deque[RunConfig] = deque()
        self.deaths: Counter[str] = Counter()
        self.stillborn = 0
        self.waited_for: set[str] = set()

    def train(self, runs: Sequence[RunConfig], workers: int) -> None:
        """Hand out the runs until none is left."""
        self.queue.extend(runs)
        while self.queue or any(worker.run for worker in self.workers):
            while self.queue and len(self.workers) < workers:
                self.workers.append(_start(self.arguments))
            for worker in [worker for worker in self.workers if worker.run is None]:
                if self.queue:
                    self._hand_out(worker)
            busy = [worker for worker in self.workers if worker.run]
            ready = wait([worker.connection for worker in busy]) if busy else []
            for worker in busy:
                if worker.connection in ready:
                    self._listen(worker)

    def close(self) -> None:
        """End the workers: all is on the disk that has to be."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()
            worker.connection.close()

    def _hand_out(self, worker: _Worker) -> None:
        worker.run = self.queue.popleft()
        try:
            worker.connection.send((worker.run, worker.run.run_id in self.needed))
        except OSError:
            self._bury(worker)

    def _listen(self, worker: _Worker) -> None:
        run = worker.run
        assert run is not None
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if kind == "ready":
            worker.ready, self.stillborn = True, 0
            return
        if kind == "epoch":
            self.progress.epoch(worker.process.pid, run, content)
            return
        worker.run = None
        if kind == "claimed":
            self.queue.append(run)
            if run.run_id not in self.waited_for:
                self.waited_for.add(run.run_id)
                self.progress.note(f"{content}: waiting for it")
        elif kind == "failed":
            self._fail(run, content)
        else:
            self.outcome.finished += 1
            if content["status"] == "diverged":
                self.outcome.diverged.append(run.run_id)
            self.progress.run(worker.process.pid, run, content)

    def _bury(self, worker: _Worker) -> None:
        """Take a dead worker out, and see to the run it had in hand."""
        self.workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        run, worker.run = worker.run, None
        assert run is not None
        if not worker.ready:
            self.queue.appendleft(run)
            self.stillborn += 1
            if self.stillborn == TRIES:
                code = worker.process.exitcode
                raise WorkerError(f"{TRIES} workers died as they started (exit code {code}, see above)")
            return
        self.deaths[run.run_id] += 1
        what = f"its worker died (exit code {worker.process.exitcode})"
        if self.deaths[run.run_id] < TRIES:
            self.queue.appendleft(run)
            self.progress.note(f"{run.run_id}: {what}; the run is started again")
        else:
            self._fail(run, f"{what} {TRIES} times")

    def _fail(self, run: RunConfig, why: str) -> None:
        self.outcome.failed[run.run_id] = why
        self.progress.note(f"{run.run_id} failed: {why}")


def _start(arguments: tuple[Path, str, float]) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()  # so that the end of the worker is the end of the pipe
    return _Worker(process, ours)


def _work(connection: Connection, directory: Path, device: str, checkpoint_seconds: float) -> None:
    """A worker: train every run that comes through the pipe, until it closes."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()

    import torch

    from regrow_lab.train import train

    torch.set_num_threads(1)
    connection.send(("ready", None))
    spoke = 0.0

    def report(row: dict[str, Any]) -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= MESSAGE_SECONDS:
            spoke = time.monotonic()
            connection.send(("epoch", row))

    while True:
        try:
            config, keep_weights = connection.recv()
        except EOFError:
            return
        try:
            result = train(
                config,
                directory,
                device=device,
                checkpoint_seconds=checkpoint_seconds,
                keep_weights=keep_weights,
                report=report,
                pulse=report,
            )
            connection.send(("finished", result))
        except store.ClaimedError as claimed:
            time.sleep(CLAIMED_SECONDS)
            connection.send(("claimed", str(claimed)))
        except ValueError as error:
            connection.send(("failed", str(error)))
        except Exception as error:
            path = store.run_folder(directory, config) / "error.txt"
            path.write_text(traceback.format_exc())
            connection.send(("failed", f"{type(error).__name__}: {error} (see {path})"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
