"""What stands on the disk: a folder a run, `DIR/runs/<run id>/`, and `DIR/study.json` for a study.

A run's folder holds config.json (first), metrics.jsonl (a line an epoch), checkpoint.pt (while the run is under way),
weights.pt (where it was asked for) and result.json (last: a run that has it is finished). Whole files appear at once or
not at all, so a run may be killed at any moment.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from regrow_files import TEXT, content_of, json_of, open_file
from regrow_lab.config import RunConfig
from regrow_lab.store import schema
from regrow_lab.store.command_lines import study_command, train_command

SCHEMA = 1
DEFAULTS = RunConfig().to_dict()
PARTS = ("runs", "report", "tune", "slurm", "again", "error.txt")
"""What may stand in the folder of a study beside study.json."""
ANEW = "delete it, and the same command makes it anew"
LONGEST_HOLDER = 1000


class ClaimedError(Exception):
    """Another process works on this run."""


class NotWrittenError(OSError):
    """A file could not be written: the disk is full, read-only or gone. What stood in its place is as it was."""


class StoppedError(Exception):
    """The run was asked to stop; it has its checkpoint."""


class LostError(Exception):
    """Another process of the same run is gone, or cannot be reached."""


@dataclass(frozen=True)
class StoredRun:
    """One run as it is stored. `metrics` has an entry an epoch; `result` is None while the run is not finished."""

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any] | None


def run_folder(directory: Path, config: RunConfig) -> Path:
    """Where the run `config` lives under `directory`."""
    return directory / "runs" / config.run_id


def read_runs(directory: Path) -> list[StoredRun]:
    """Every run stored under `directory`, ordered by name; those that have not got as far as config.json are left out.

    Raises ValueError if `directory` holds no runs, a file in it cannot be understood, or a run's result is there twice.
    """
    runs = directory / "runs"
    if not runs.is_dir():
        raise ValueError(
            f"{directory} holds no runs (there is no folder {runs}): "
            "give a folder that `regrow study` or `regrow train` wrote with --out"
        )
    found = [read_run(folder) for folder in sorted(runs.iterdir()) if (folder / "config.json").exists()]
    _refuse_copies(found)
    return found


def _refuse_copies(runs: Iterable[StoredRun]) -> None:
    """Raise ValueError where two results are of one configuration: a copy would count as another seed."""
    known: dict[tuple[tuple[str, object], ...], Path] = {}
    for run in runs:
        if run.result is not None:
            # An older version's runs lack the newer fields.
            fields = (DEFAULTS | run.config | {"schema": None}).items()
            key = tuple(
                sorted((name, repr(value) if isinstance(value, (dict, list)) else value) for name, value in fields)
            )
            if key in known:
                raise ValueError(
                    f"{run.folder} holds the same run as {known[key]}, which would count twice: move one of them away"
                )
            known[key] = run.folder


def read_run(folder: Path) -> StoredRun:
    """The run stored in `folder`, finished or not.

    Raises ValueError if `folder` is not the folder of a run or a file in it cannot be understood.
    """
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{folder} is not a run folder (it has no config.json): give one of the folders under DIR/runs"
        )
    config = read_json(folder / "config.json", f"delete the run's folder, and {_maker(folder)} does it anew")
    schema.check_config(folder / "config.json", config)
    metrics = _read_metrics(folder / "metrics.jsonl")
    remedy = f"delete it, and {_maker(folder, config)} trains the run anew"
    result = read_result(folder, remedy) if is_finished(folder) else None
    if result is not None and metrics is not None:
        _check_whole(folder / "metrics.jsonl", metrics, result.get("steps"))
    return StoredRun(folder, config, metrics or [], result)


def read_result(folder: Path, remedy: str = ANEW) -> dict[str, Any]:
    """The result of a finished run. Raises ValueError, with the remedy, if it cannot be understood."""
    result = read_json(folder / "result.json", remedy)
    schema.check_result(folder / "result.json", result)
    return result


def _maker(folder: Path, config: dict[str, Any] | None = None) -> str:
    """The command that makes the run of a folder, as far as what stands on the disk tells."""
    directory = folder.parent.parent
    with suppress(ValueError, TypeError, OSError):
        study = read_study(directory)
        if study.get("study"):
            return f"`{study_command(study, directory)}`"
        if config is not None:
            run = RunConfig.from_dict({name: value for name, value in config.items() if name != "schema"})
            return f"`{train_command(run, directory)}`"
    return "the command that trained it"


def is_finished(folder: Path) -> bool:
    """Whether the run of `folder` has its result."""
    return (folder / "result.json").exists()


def write_config(folder: Path, config: RunConfig) -> None:
    """Make config.json, or check that the one in `folder` is this run's."""
    path = folder / "config.json"
    if not path.exists():
        write_json(path, config.to_dict())
        return
    stored = read_json(path)
    schema.check_config(path, stored)
    stored.pop("schema")
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


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write `fields` and the schema to `path`, the whole file or nothing of it."""
    text = json.dumps({"schema": SCHEMA, **fields}, indent=2, allow_nan=False)
    write_whole(path, lambda file: file.write(f"{text}\n".encode()))


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Have `write` fill a file beside `path`, then put it in the place of `path` in one step.

    Raises NotWrittenError if the disk does not take it; what stood at `path` is as it was.
    """
    # On machines and in containers that share the folder another process may have this one's number.
    beside = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with writing(path), beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of what the disk refuses which file it was, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise NotWrittenError(
            f"{path} could not be written ({error.strerror or error}): what was there before is whole; make room, then "
            "the same command goes on from it"
        ) from error


def read_json(path: Path, remedy: str = ANEW) -> dict[str, Any]:
    """The object that `write_json` wrote. Raises ValueError, with the remedy, if it is broken or of another schema."""
    content = content_of(path, TEXT)
    try:
        fields = json_of(content)
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}): {remedy}") from None
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        given = fields.get("schema") if isinstance(fields, dict) else None
        raise ValueError(
            f"{path} has schema {given}, this version reads {SCHEMA}: give a folder that this version wrote"
        )
    return fields


def read_study(directory: Path) -> dict[str, Any]:
    """The content of study.json; empty where the folder is not that of a study. Raises ValueError if it is damaged."""
    path = directory / "study.json"
    if not path.exists():
        return {}
    remedy = "delete it, and the study's command makes it anew"
    study = read_json(path, remedy)
    schema.check(path, study, schema.STUDY, remedy)
    return study


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Make `path` a file of these rows, a line each, the whole file or nothing of it."""
    lines = [_line(row).encode() for row in rows]
    write_whole(path, lambda file: file.writelines(lines))


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add a row to such a file."""
    with writing(path), open_file(path, "ab") as file:
        file.write(_line(row).encode())


def _line(row: dict[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA, **row}) + "\n"


def _read_metrics(path: Path) -> list[dict[str, Any]] | None:
    if not path.exists():
        return None
    lines = content_of(path, TEXT).split(b"\n")[:-1]  # what stands behind the last newline was being written
    try:
        rows = [json_of(line) for line in lines]
    except ValueError as error:
        raise ValueError(
            f"{path} has a line that is no JSON ({error}): delete the run's folder to have it done again"
        ) from None
    if not all(isinstance(row, dict) and row.pop("schema", SCHEMA) == SCHEMA for row in rows):
        raise ValueError(
            f"{path} has a line that is no object of schema {SCHEMA}: delete the run's folder to have it done again"
        )
    return rows


def _check_whole(path: Path, rows: list[dict[str, Any]], steps: int | None) -> None:
    """Refuse the metrics of a finished run that lack epochs, or have some twice: its result says where it ended."""
    last = rows[-1].get("step") if rows else 0
    in_order = [row.get("epoch") for row in rows] == list(range(1, len(rows) + 1))
    if not in_order or steps not in (None, last):
        raise ValueError(
            f"{path} has {len(rows)} lines up to step {last!r:.40}, not the epochs of a run of {steps} steps: "
            "put it back as it was, or delete it, as tables and figures do without it"
        )


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
