"""The journal: every question of Optuna's, a line each, in a file; and a lock for each trial that is under way."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from regrow_files import json_of, open_file
from regrow_lab import store
from regrow_lab.tuning.errors import SearchError


class JournalFile(BaseJournalBackend):
    """Lines of JSON. What stands behind the last newline was being written when its writer died, and does not count.

    A line that the disk refuses is taken back, so the file is whole at any moment; writers wait for each other on a
    lock that the kernel frees when its holder dies.

    Raises:
        SearchError: the file was deleted, replaced or cut, or has a line that is none of a journal.
        store.NotWrittenError: the disk does not take a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets = {0: 0}
        self.read_to = 0
        with store.writing(path), open_file(path, "ab") as file:
            self.identity = _identity(file)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The whole lines from this one on."""
        start = self.offsets[log_number_from]
        with self._opened() as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # lines that the disk refuses are never seen before they are taken back
            file.seek(start)
            content = file.read()
        for number, line in enumerate(content.split(b"\n")[:-1], log_number_from + 1):
            try:
                log = json_of(line)
            except ValueError:
                log = None
            if not isinstance(log, dict) or "op_code" not in log:
                raise self.damaged(f"line {number} is none of a journal")
            start += len(line) + 1
            self.offsets[number] = self.read_to = start
            yield log

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Add lines, all of them or none."""
        lines = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._opened() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = _end_of_lines(file)
            file.truncate(end)
            file.seek(end)
            try:
                with store.writing(self.path):
                    left = memoryview(lines)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise

    def damaged(self, how: str) -> SearchError:
        """What to raise where the file cannot be understood."""
        return SearchError(
            f"{self.path} is damaged ({how}): delete it, and the same command begins the search anew with the runs "
            "that are finished"
        )

    @contextmanager
    def _opened(self) -> Iterator[IO[Any]]:
        try:
            file = open_file(self.path, "r+b", buffering=0)
        except FileNotFoundError:
            file = None
        if file is None or _identity(file) != self.identity:
            raise SearchError(
                f"{self.path} was deleted while the search went on; the same command begins it anew with the runs that "
                "are finished"
            )
        with file:
            if os.fstat(file.fileno()).st_size < self.read_to:
                raise self.damaged("lines that were there are gone")
            yield file


def _identity(file: IO[Any]) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino


def _end_of_lines(file: IO[Any]) -> int:
    """Where the last whole line ends."""
    size = file.seek(0, os.SEEK_END)
    step = 1
    while step < size:
        file.seek(-step, os.SEEK_END)
        at: int = file.read(step).rfind(b"\n")
        if at >= 0:
            return size - step + at + 1
        step *= 64
    file.seek(0)
    last: int = file.read(size).rfind(b"\n")
    return last + 1


class Journal(JournalStorage, BaseHeartbeat):
    """A journal on the disk. A worker locks the trial that it works on; if it dies, the kernel frees the lock.

    It begins the trial and locks it inside `beginning`, so that outside of it every trial under way is locked, or its
    worker is dead.

    Raises SearchError if the file is damaged.
    """

    def __init__(self, folder: Path, heartbeat_seconds: int) -> None:
        with store.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        file = JournalFile(folder / "journal.log")
        try:
            super().__init__(file)
        except (SearchError, OSError):
            raise
        except Exception as error:  # lines of JSON that make no history
            raise file.damaged(f"{type(error).__name__}: {error}") from None
        self.folder = folder
        self.heartbeat_seconds = heartbeat_seconds
        self.held: dict[int, IO[bytes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a journal is opened by each process for itself")

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Held by one worker at a time, and freed if it dies."""
        with open_file(self.folder / "beginning", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def record_heartbeat(self, trial_id: int) -> None:
        """Hold the lock of this trial, and of no other."""
        if trial_id not in self.held:
            for other in list(self.held):
                self.release(other)
            file = open_file(self._lock(trial_id), "wb")
            fcntl.flock(file, fcntl.LOCK_EX)
            self.held[trial_id] = file

    def release(self, trial_id: int) -> None:
        """Let go of a trial that is under way no more."""
        with suppress(OSError):
            self._lock(trial_id).unlink()
        if trial_id in self.held:
            self.held.pop(trial_id).close()

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        with self.beginning():
            running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        return [trial._trial_id for trial in running if self._is_free(trial)]

    def _is_free(self, trial: FrozenTrial) -> bool:
        if trial._trial_id in self.held:
            return False
        try:
            with open_file(self._lock(trial._trial_id), "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        return True

    def _lock(self, trial_id: int) -> Path:
        return self.folder / f"trial-{trial_id}.lock"

    def get_heartbeat_interval(self) -> int:
        """See BaseHeartbeat."""
        return self.heartbeat_seconds

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None] | None:
        """None: a trial whose worker died is queued again by the workers, see `owed`."""
        return None
