"""Finished runs in one file, `DIR/runs.jsonl` or, where that is large, `DIR/runs.jsonl.gz`: a line a run.

A line has the run's name, its config and result, and its metrics where the run has them.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from regrow_files import TEXT, open_file
from regrow_lab.store import schema
from regrow_lab.store.command_lines import maker
from regrow_lab.store.stored_run import StoredRun, check_metrics, one_of
from regrow_lab.store.whole_files import SCHEMA, rows_of, write_whole

PLAIN, COMPRESSED = PACKED = ("runs.jsonl", "runs.jsonl.gz")
LARGE = 500_000
"""Bytes from which on the file is compressed."""
LONGEST_LINE = 4 * TEXT
"""Bytes: a line holds all text files of a run, of which each has TEXT at most."""


def packed_runs(directory: Path) -> Mapping[str, StoredRun]:
    """The packed runs of a folder by name, whichever of the files they are in; a folder may have none.

    Raises ValueError, with file, line and remedy, for what cannot be understood or contradicts itself.
    """
    files = list[Mapping[str, StoredRun]]()
    for path in (directory / name for name in PACKED):
        with suppress(FileNotFoundError, NotADirectoryError):
            state = path.stat()
            files.append(_runs_in(path, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)))
    if len(files) < 2:  # as a rule; asked of each run, it must not take time for all
        return files[0] if files else {}
    found = dict(files[0])
    _add(found, files[1].values())
    return found


def _add(found: dict[str, StoredRun], runs: Iterable[StoredRun]) -> None:
    for run in runs:
        name = run.folder.name
        found[name] = one_of(found[name], run) if name in found else run


@functools.lru_cache(8)
def _runs_in(path: Path, state: tuple[int, ...]) -> Mapping[str, StoredRun]:
    """The runs in a file, read once as long as its state is the same: each run of a study is asked for."""
    found: dict[str, StoredRun] = {}
    try:
        with open_file(path) as stored, gzip.open(stored) if path.suffix == ".gz" else stored as file:
            rows = rows_of(path, _lines(path, file), _remedy(path))
            _add(found, (_run(path, place, row) for place, row in rows))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path} is truncated or broken after {len(found)} runs ({error}): put it back as it was, or delete it, "
            f"and {maker(path.parent)} trains its runs anew"
        ) from None
    return found


def _lines(path: Path, file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"{path} has a line of {LONGEST_LINE:,} bytes or more: {_remedy(path)}")
        yield line


def _remedy(path: Path, config: dict[str, Any] | None = None) -> str:
    return f"put it back as it was, or delete the line, and {maker(path.parent, config)} trains the run anew"


def _run(path: Path, place: str, row: dict[str, Any]) -> StoredRun:
    match row:
        case {"run": str(name), "config": dict(config), "result": dict(result)} if _is_name(name):
            metrics = row.get("metrics")
        case _:
            raise ValueError(f"{place} is damaged: run, config and result were expected; {_remedy(path)}")
    remedy = _remedy(path, config)
    schema.check_config(place, config, remedy)
    schema.check_result(place, result, remedy)
    run = StoredRun(path.parent / "runs" / name, config, metrics or [], result, place)
    if metrics is not None:
        if not isinstance(metrics, list) or not all(isinstance(each, dict) for each in metrics):
            raise ValueError(f"{place} is damaged: metrics are a list of epochs; {remedy}")
        check_metrics(place, run, remedy)
    return run


def _is_name(text: str) -> bool:
    """Whether a text is the name of a folder, and leads nowhere else."""
    return text == Path(text).name and text not in ("", "..")


def write_packed(directory: Path, runs: Iterable[StoredRun]) -> Path:
    """Make these finished runs what is packed under `directory`; the same runs in the same order, the same bytes."""
    rows = [
        {"run": run.folder.name, "config": run.config, "result": run.result}
        | ({"metrics": run.metrics} if run.metrics else {})
        for run in runs
    ]
    content = "".join(json.dumps({"schema": SCHEMA, **row}, separators=(",", ":")) + "\n" for row in rows).encode()
    written, other = PLAIN, COMPRESSED
    if len(content) > LARGE:
        written, other, content = COMPRESSED, PLAIN, _compressed(content)
    write_whole(directory / written, lambda file: file.write(content))
    (directory / other).unlink(missing_ok=True)
    return directory / written


def _compressed(content: bytes) -> bytes:
    """By gzip, without the time of day."""
    compressed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, compressed, mtime=0) as file:
        file.write(content)
    return compressed.getvalue()
