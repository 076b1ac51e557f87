"""What stands on the disk: a folder a run, `DIR/runs/<run id>/`, and `DIR/study.json` for a study.

A run's folder holds config.json (first), metrics.jsonl (a line an epoch), checkpoint.pt (while the run is under way),
weights.pt (where it was asked for) and result.json (last: a run that has it is finished). Whole files appear at once or
not at all, so a run may be killed at any moment.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from regrow_files import open_file
from regrow_lab.config import RunConfig
from regrow_lab.store import schema
from regrow_lab.store.command_lines import maker
from regrow_lab.store.packed import PACKED, packed_runs, write_packed
from regrow_lab.store.stored_run import StoredRun, check_metrics, one_of
from regrow_lab.store.whole_files import ANEW, read_json, read_lines, write_json, writing

PARTS = ("runs", *PACKED, "report", "tune", "slurm", "again", "error.txt")
"""What may stand in the folder of a study beside study.json."""
LONGEST_HOLDER = 1000


class ClaimedError(Exception):
    """Another process works on this run."""


class StoppedError(Exception):
    """The run was asked to stop; it has its checkpoint."""


class LostError(Exception):
    """Another process of the same run is gone, or cannot be reached."""


def run_folder(directory: Path, config: RunConfig) -> Path:
    """Where the run `config` lives under `directory`."""
    return directory / "runs" / config.run_id


def holds_runs(directory: Path) -> bool:
    """Whether the folder is one that runs are stored in, in either form."""
    return (directory / "runs").is_dir() or any((directory / name).exists() for name in PACKED)


def study_folders(directory: Path) -> list[Path]:
    """The studies right under `directory`, where it is a folder of studies: `regrow study all` makes such a one."""
    if not directory.is_dir() or holds_runs(directory):
        return []
    return sorted(path.parent for path in directory.glob("*/study.json"))


def read_runs(directory: Path) -> list[StoredRun]:
    """Every run stored under `directory`, ordered by name; those that have not got as far as config.json are left out.

    Raises ValueError if `directory` holds no runs, a file in it cannot be understood, a run's result is there twice, or
    what is packed of a run contradicts its folder.
    """
    if not holds_runs(directory):
        raise ValueError(
            f"{directory} holds no runs (there is no folder {directory / 'runs'}, and no {PACKED[0]}): "
            "give a folder that `regrow study` or `regrow train` wrote with --out"
        )
    found = dict(packed_runs(directory))
    for config in directory.glob("runs/*/config.json"):
        run = read_run(config.parent)
        found[run.folder.name] = one_of(found[run.folder.name], run) if run.folder.name in found else run
    runs = [found[name] for name in sorted(found)]
    _refuse_copies(runs)
    return runs


def _refuse_copies(runs: Iterable[StoredRun]) -> None:
    """Raise ValueError where two results are of one configuration: a copy would count as another seed."""
    known: dict[tuple[tuple[str, object], ...], StoredRun] = {}
    for run in runs:
        if run.result is not None:
            key = tuple(
                sorted(
                    (name, repr(value) if isinstance(value, (dict, list)) else value)
                    for name, value in run.whole_config.items()
                )
            )
            if (other := known.setdefault(key, run)) is not run:
                raise ValueError(
                    f"{run.place} holds the same run as {other.place}, which would count twice: move one of them away"
                )


def read_run(folder: Path) -> StoredRun:
    """The run in the folder `folder`, finished or not.

    Raises ValueError if `folder` is not the folder of a run or a file in it cannot be understood.
    """
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{folder} is not a run folder (it has no config.json): give one of the folders under DIR/runs"
        )
    directory = folder.parent.parent
    config = read_json(folder / "config.json", f"delete the run's folder, and {maker(directory)} does it anew")
    schema.check_config(folder / "config.json", config)
    metrics, result = folder / "metrics.jsonl", folder / "result.json"
    rows = read_lines(metrics, schema.ANEW) if metrics.exists() else []
    run = StoredRun(folder, config, rows)
    if not result.exists():
        return run
    run = replace(run, result=_result_in(result, f"delete it, and {maker(directory, config)} trains the run anew"))
    if metrics.exists():
        check_metrics(metrics, run, "put it back as it was, or delete it, as tables and figures do without it")
    return run


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished run. Raises ValueError, with the remedy, if it cannot be understood."""
    path = folder / "result.json"
    if not path.exists() and (packed := packed_runs(folder.parent.parent).get(folder.name)):
        return dict(packed.result or {})
    return _result_in(path, ANEW)


def _result_in(path: Path, remedy: str) -> dict[str, Any]:
    result = read_json(path, remedy)
    schema.check_result(path, result)
    return result


def is_finished(folder: Path) -> bool:
    """Whether the run of `folder` has its result, there or in a packed file."""
    return (folder / "result.json").exists() or folder.name in packed_runs(folder.parent.parent)


def write_config(folder: Path, config: RunConfig) -> None:
    """Make config.json, or check that the one in `folder` is this run's."""
    path = folder / "config.json"
    if not path.exists():
        write_json(path, config.to_dict())
        return
    stored = read_json(path)
    schema.check_config(path, stored)
    if RunConfig.from_dict(stored) != config:
        raise ValueError(f"{path} is of another run than {config.run_id}: give another folder with --out")


def open_study(directory: Path, name: str, seeds: int, **settings: Any) -> None:
    """Make `directory` the folder of the study `name` with such `settings` (scale, data), or check that it is.

    Raises ValueError if it is a file, the folder of another study, or holds other things.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: give a new or empty folder with --out")
    path = directory / "study.json"
    # Listed before study.json is looked for: it is the first file of a study that another process begins just now.
    # A folder that has all but study.json has lost it.
    found = [each.name for each in directory.iterdir()] if directory.exists() else []
    other = any(name not in PARTS and not name.startswith(path.name) for name in found)
    if path.exists():
        study = read_study(directory)
        if study.get("study") != name:
            raise ValueError(
                f"{directory} is the folder of the study {study.get('study')!r}, not {name!r}: give another with --out"
            )
        for setting, value in settings.items():
            usual = "" if setting in ("model", "method") else value  # older ones had none of somebody's own
            held = study.get(setting, usual)
            if held != value:
                raise ValueError(
                    f"{directory} holds this study with {setting} {held!r}, not {value!r}: give another "
                    "folder with --out"
                )
        seeds = max(seeds, study.get("seeds", 0))
    elif other:
        raise ValueError(f"{directory} is not a study folder, and not empty: give a new or empty folder with --out")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, {"study": name, "seeds": seeds, **settings})


def read_study(directory: Path) -> dict[str, Any]:
    """The content of study.json; empty where the folder is not that of a study. Raises ValueError if it is damaged."""
    path = directory / "study.json"
    if not path.exists():
        return {}
    remedy = "delete it, and the study's command makes it anew"
    study = read_json(path, remedy)
    schema.check(path, study, schema.STUDY, remedy)
    return study


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold the run of `folder` (made if need be) for this process.

    The kernel holds the lock and frees it when the process ends in whatever way, so no lock is ever stale. The file
    says who holds it, and goes with the claim; one that a killed process left is taken over.

    Raises ClaimedError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with _locked(path) as file:
        try:
            with writing(path):  # at once: what a buffer keeps would fail again when it is closed, without a name
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            for leftover in folder.glob("*.part"):
                leftover.unlink()
            yield
        finally:
            if _is_at(path, file):  # taken away while it is held: whoever waits for it looks again
                path.unlink(missing_ok=True)


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether an open file is the one that stands at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _locked(path: Path) -> IO[bytes]:
    """The file of a lock, held. What is held must be what stands at `path`, not what its last holder took away."""
    while True:
        file = open_file(path, "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                return file
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read(LONGEST_HOLDER).decode(errors="replace").strip() or "another process"
            raise ClaimedError(f"{path.parent.name} is under way in {holder}") from None
        except BaseException:
            file.close()
            raise
        file.close()


def sweep(folder: Path) -> None:
    """Remove what a finished run needs no more: its checkpoint, files that were being written, a dead holder's lock."""
    for leftover in (folder / "checkpoint.pt", folder / "lock", *folder.glob("*.part")):
        leftover.unlink(missing_ok=True)


@dataclass(frozen=True)
class Packing:
    """What packing left: the file, how many runs it holds, and the folders that stay."""

    path: Path
    runs: int
    unfinished: int
    weights: int

    @property
    def in_words(self) -> str:
        """In one line."""
        left = {"unfinished": self.unfinished, "with their weights.pt": self.weights}
        stays = [f"; {count} {what} stay in {self.path.with_name('runs')}" for what, count in left.items() if count]
        return f"{self.path}: {self.runs} runs{''.join(stays)}"


def pack(directory: Path) -> Packing:
    """Put every finished run under `directory` into one file, and take away the files of its folder that are in it.

    All that a report or a study needs is in the file. Runs that are under way keep their folders, and weights.pt, which
    other runs start from, stays where it is. It may be stopped at any moment and called again.

    Raises ValueError, before anything is changed, as :func:`read_runs`, and ClaimedError if another process packs.
    """
    read_runs(directory)  # before the lock makes its folder
    with claim(directory / "runs"):
        runs = read_runs(directory)
        finished = [run for run in runs if run.result is not None]
        path = write_packed(directory, finished)
        for run in finished:
            for name in ("metrics.jsonl", "result.json", "config.json"):  # in this order what is left is no other run
                (run.folder / name).unlink(missing_ok=True)
            sweep(run.folder)
            with suppress(OSError):
                run.folder.rmdir()
    with suppress(OSError):
        (directory / "runs").rmdir()
    weights = sum((run.folder / "weights.pt").exists() for run in finished)
    return Packing(path, len(finished), len(runs) - len(finished), weights)
