"""A study on one machine: a few long-lived worker processes, one thread each, many runs one after another in each.

torch's import takes longer than a short run, so a process is never started for one run. This module does not import
torch; the workers do. Workers are not bound to cores: two studies on one machine would be bound to the same ones.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
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

from regrow_lab.config import RunConfig
from regrow_lab.launch.outcome import CLAIMED_SECONDS, TRIES, More, Outcome, WorkerError, no_more, unfinished
from regrow_lab.launch.progress import Progress
from regrow_lab.store import folders, whole_files

MESSAGE_SECONDS = 0.25
"""Time between two messages of a worker about the run it has in hand."""
STOPPED = 143
"""Exit code of a worker that was told to end, as a shell gives it after SIGTERM."""


def default_workers() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Local:
    """A pool of processes on this machine."""

    workers: int = field(default_factory=default_workers)
    """Processes, one thread each; on GPUs as many as are to share each of them."""
    device: str = "cpu"
    """Where the nets and the data live: cpu, cuda for every GPU of the machine, cuda:1 for one of them."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints of a run."""

    def check(self) -> None:
        """See Launcher."""
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, given {self.workers}")
        self.devices()

    def devices(self) -> list[str]:
        """The device of each worker. Raises ValueError for a device that there is not."""
        if self.device == "cpu":
            return ["cpu"] * self.workers
        import torch

        from regrow_lab.run.machine import device_named

        device = device_named(self.device)
        every = device.type == "cuda" and device.index is None
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if every else [self.device]
        return names * self.workers

    @property
    def at_a_time(self) -> int:
        """See Launcher."""
        return len(self.devices())

    def launch(self, runs: Sequence[RunConfig], directory: Path, progress: Progress, more: More = no_more) -> Outcome:
        """See Launcher.

        Runs that another process has in hand are waited for, and taken over should that process die. A run whose worker
        dies is started again, three times in all.

        Raises:
            ValueError: fewer workers than one, or no such device.
            WorkerError: the workers die before they can begin; nothing is lost.
        """
        self.check()
        pending = unfinished(runs, directory)
        outcome = Outcome(before=len(runs) - len(pending))
        pool = _Pool(directory, self.checkpoint_seconds, progress, outcome)
        progress.begin(total=len(runs), finished=outcome.before)
        try:
            pool.add(pending)
            pool.train(self.devices(), more)
        finally:
            pool.close()
            progress.end()
        return outcome


def _free(devices: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The devices that have no worker, in their order: few runs go to all GPUs before two share one."""
    left = Counter(taken)
    free = []
    for device in devices:
        if left[device]:
            left[device] -= 1
        else:
            free.append(device)
    return free


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    device: str
    run: RunConfig | None = None
    ready: bool = False


class _Pool:
    def __init__(self, directory: Path, checkpoint_seconds: float, progress: Progress, outcome: Outcome) -> None:
        self.arguments = (directory, checkpoint_seconds)
        self.progress = progress
        self.outcome = outcome
        self.needed: set[str] = set()  # runs that leave their weights, as others start from them
        self.workers: list[_Worker] = []
        self.queue: deque[RunConfig] = deque()
        self.deaths: Counter[str] = Counter()
        self.stillborn = 0
        self.waited_for: set[str] = set()

    def add(self, runs: Sequence[RunConfig]) -> None:
        """Take in runs that are to be trained."""
        self.needed.update(config.prerequisite.run_id for config in runs if config.prerequisite)
        self.queue.extend(runs)

    def train(self, devices: Sequence[str], more: More) -> None:
        """Hand out the runs to a worker on each of the devices until none is left, and `more` knows of none."""
        asked = 0
        while self.queue or any(worker.run for worker in self.workers):
            for device in _free(devices, [worker.device for worker in self.workers]):
                if len(self.queue) > sum(worker.run is None for worker in self.workers):
                    self.workers.append(_start(device, *self.arguments))
            for worker in [worker for worker in self.workers if worker.run is None]:
                if self.queue:
                    self._hand_out(worker)
            busy = [worker for worker in self.workers if worker.run]
            ready = wait([worker.connection for worker in busy]) if busy else []
            for worker in busy:
                if worker.connection in ready:
                    self._listen(worker)
            if self.outcome.ended > asked:
                asked = self.outcome.ended
                self.add(more(self.outcome))

    def close(self) -> None:
        """End the workers; each writes the checkpoint of the run that it has in hand."""
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
            self.outcome.fail(run, content, self.progress)
        else:
            self.outcome.count(run, content)
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
            self.outcome.fail(run, f"{what} {TRIES} times", self.progress)


def _start(device: str, directory: Path, checkpoint_seconds: float) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    arguments = (theirs, device, directory, checkpoint_seconds)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=arguments, daemon=True)
    process.start()
    theirs.close()  # so that the end of the worker is the end of the pipe
    return _Worker(process, ours, device)


def _work(connection: Connection, device: str, directory: Path, checkpoint_seconds: float) -> None:
    """A worker: train every run that comes through the pipe, until it closes."""
    import signal

    # Ctrl-C and a scheduler's warning reach the whole group; the parent ends its workers.
    for warning in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from regrow_lab.run.machine import take_threads
    from regrow_lab.run.resumable import train

    take_threads(1)
    training, stop, spoke = False, False, 0.0

    def end(number: int, frame: object) -> None:
        nonlocal stop
        stop = True
        if not training:
            sys.exit(STOPPED)

    signal.signal(signal.SIGTERM, end)
    connection.send(("ready", None))

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
        training = True
        try:
            result = train(
                config,
                directory,
                device=device,
                checkpoint_seconds=checkpoint_seconds,
                keep_weights=keep_weights,
                report=report,
                pulse=report,
                stopping=lambda: stop,
            )
            connection.send(("finished", result))
        except folders.StoppedError:
            sys.exit(STOPPED)
        except folders.ClaimedError as claimed:
            time.sleep(CLAIMED_SECONDS)
            connection.send(("claimed", str(claimed)))
        except (ValueError, whole_files.NotWrittenError) as error:
            connection.send(("failed", str(error)))
        except Exception as error:  # one run may raise anything, and the others go on
            connection.send(("failed", _in_words(error, folders.run_folder(directory, config))))
        training = False
        if stop:
            sys.exit(STOPPED)


def _in_words(error: Exception, folder: Path) -> str:
    """What broke a run, in a line; its traceback is in a file of the run's folder, if the disk takes that."""
    said, path = f"{type(error).__name__}: {error}", folder / "error.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole_files.write_whole(
            path, lambda file: file.write("".join(traceback.format_exception(error)).encode(errors="backslashreplace"))
        )
    except OSError:
        return said
    return f"{said} (see {path})"


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
