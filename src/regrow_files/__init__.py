"""How files are opened here, and text in them understood: regular files alone, no larger than they may be.

What is no file (a named pipe, a device, a folder) would be waited for, or read without an end.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import IO, Any

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
AT_ONCE = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY"))
"""Flags with which nothing is waited for while it is opened."""
TEXT = 2**26
"""Bytes of a file of JSON, at most."""

Place = str | os.PathLike[str]


def open_file(path: Place, mode: str = "rb", *, largest: int | None = None, buffering: int = -1) -> IO[Any]:
    """A regular file, opened as by ``open`` in a binary mode.

    Args:
        path: of the file.
        mode: as of ``open``.
        largest: bytes that a file may have that is read; by default half of the machine's memory, as what is read lies
            there twice.
        buffering: as of ``open``.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: something else than a file is there; or a file that is to be read, and is too large or must not be.
        OSError: a file cannot be written.
    """
    try:
        file = open(path, mode, buffering=buffering, opener=_open_at_once)  # noqa: SIM115
    except FileNotFoundError:
        raise
    except OSError as error:
        kind = _kind(path)
        if kind is not None:
            raise ValueError(
                f"{shown(path)} is {kind}, a file was expected: move it away, or give another path"
            ) from None
        if mode in ("wb", "ab"):
            raise
        raise ValueError(f"{shown(path)} cannot be read ({error.strerror}): mend that, or give another file") from None
    size, most = os.fstat(file.fileno()).st_size, half_of_the_memory() if largest is None else largest
    if size > most and ("r" in mode or "+" in mode):
        file.close()
        raise ValueError(f"{shown(path)} has {size:,} bytes, at most {most:,} are read: give another file")
    return file


def content_of(path: Place, largest: int | None = None) -> bytes:
    """The bytes of a regular file; of one that grows those that it had when it was opened.

    Raises as :func:`open_file`, and ValueError for a file that shrinks meanwhile.
    """
    with open_file(path, largest=largest) as file:
        size = os.fstat(file.fileno()).st_size
        content: bytes = file.read(size)
    if len(content) < size:
        raise ValueError(f"{shown(path)} was cut while it was read: do it again once nothing writes to it")
    return content


def check_readable(path: Place) -> None:
    """Raises as :func:`open_file`: for libraries that want to open a file by themselves."""
    open_file(path).close()


def half_of_the_memory() -> int:
    """In bytes, of this machine; 4 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 2**32


def json_of(text: bytes) -> Any:
    """What JSON says, in the characters that a terminal shows: others are written as in Python's own strings.

    Raises:
        ValueError: it is no UTF-8 or no JSON, is nested too deeply, gives a name twice, or a number that is not finite.

    >>> json_of(b'{"name": "a\\\\u001b[31m", "loss": 1e999}')
    Traceback (most recent call last):
    ValueError: 1e999 is no finite number
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_fields, parse_float=_finite, parse_constant=_finite)
        return _shown_in(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(text: object) -> str:
    """Text as it may stand on a terminal: what it does not show, or obeys, is written as in Python's own strings.

    >>> shown("a\\x1b[31m\\n")
    'a\\\\x1b[31m\\\\n'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _open_at_once(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | AT_ONCE, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a file")
    return descriptor


def _kind(path: Place) -> str | None:
    """What stands at a path, if that is no file."""
    try:
        return KINDS.get(stat.S_IFMT(Path(path).stat().st_mode))
    except OSError:
        return None


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return fields


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is no finite number")
    return value


def _shown_in(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list):
        return [_shown_in(each) for each in value]
    if isinstance(value, dict):
        return _fields([(shown(name), _shown_in(each)) for name, each in value.items()])
    return value
