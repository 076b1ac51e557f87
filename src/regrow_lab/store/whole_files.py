"""Files of JSON that appear at once or not at all, and lines of it: what every stored file is read and written with."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from regrow_files import TEXT, content_of, json_of, open_file

SCHEMA = 1
ANEW = "delete it, and the same command makes it anew"


class NotWrittenError(OSError):
    """A file could not be written: the disk is full, read-only or gone. What stood in its place is as it was."""


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
    """The fields that `write_json` was given.

    Raises ValueError, with the remedy, if the file is broken or of another schema.
    """
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
    del fields["schema"]
    return fields


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


def read_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The rows of such a file, but what stands behind the last newline: that was being written.

    Raises ValueError, with the line and the remedy, where it is damaged.
    """
    return [row for _, row in rows_of(path, content_of(path, TEXT).split(b"\n")[:-1], remedy)]


def rows_of(path: Path, lines: Iterable[bytes], remedy: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows that these lines of `path` hold, each after its place, such as "metrics.jsonl, line 2".

    Raises ValueError as :func:`read_lines`.
    """
    for number, line in enumerate(lines, 1):
        try:
            row = json_of(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no JSON ({error}): {remedy}") from None
        if not isinstance(row, dict) or row.pop("schema", SCHEMA) != SCHEMA:
            raise ValueError(f"{path}, line {number} is no object of schema {SCHEMA}: {remedy}")
        yield f"{path}, line {number}", row
