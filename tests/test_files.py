"""Every file is opened in one way: regular ones, of a size that fits, and nothing is ever waited for."""

import ast
import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traps import TRAPS, within

import regrow_files as reading
from regrow_files import check_readable, content_of, json_of, open_file, shown

SOURCES = Path(__file__).parent.parent / "src"
OPENERS = {
    "FileIO",
    "TarFile",
    "ZipFile",
    "from_file",
    "fromfile",
    "loadtxt",
    "memmap",
    "memory_map",
    "mmap",
    "open",
    "open_file",
    "open_stream",
    "read_bytes",
    "read_table",
    "read_text",
    "safe_open",
}
OPENED = {
    "regrow_files/__init__.py": {
        "open(path, mode, buffering=buffering, opener=_open_at_once)",
        "os.open(path, flags | AT_ONCE, 438)",
        "open_file(path)",
        "open_file(path, largest=largest)",
    },
    "regrow/checksummed_files.py": {
        "torch.load(io.BytesIO(packed), map_location=device, weights_only=True)",
        "zipfile.ZipFile(io.BytesIO(packed))",
    },
    "regrow/compaction/file_format.py": {"library.safe_open(os.fspath(path), framework='pt')"},  # after check_readable
    "regrow/compaction/timings/timing_cache.py": {"Path('/proc/cpuinfo').read_text()"},
    "regrow_lab/run/machine.py": {"Path('/proc/self/status').read_text()"},
    "regrow_lab/commands/cli.py": {"os.open(os.devnull, os.O_WRONLY)"},
    "regrow_lab/store/packed.py": {"gzip.open(stored)"},
    "regrow_lab/store/whole_files.py": {"beside.open('wb')"},  # of a name that nobody can know
    "regrow/procedures/stage_files.py": {"unfinished.open('wb')"},
    "regrow_lab/data/decoded_cache.py": {"torch.load(path, weights_only=True, mmap=True)"},  # after check_readable
    "regrow_lab/data/cifar.py": {"tarfile.open(fileobj=file)"},
    "regrow_lab/data/folder.py": {"Image.open(file)"},
    "regrow_lab/data/hugging_face.py": {
        "Image.open(io.BytesIO(content))",
        "parquet.read_table(file)",
        "ipc.open_file(file)",
        "ipc.open_stream(file)",
    },
    "regrow_lab/data/idx.py": {"gzip.open(file)"},
}
"""What else opens something, by file: what is open already, what is the system's own, and what is written anew."""


def calls(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            loads = name == "load" and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load", "json.load")
            ours = ast.unparse(node.func) == "open_file"
            if (name in OPENERS or loads) and not ours:
                yield ast.unparse(node)


def test_nothing_else_opens_files() -> None:
    found = {}
    for path in sorted([*SOURCES.glob("regrow*/**/*.py")]):
        others = set(calls(path.read_text())) - OPENED.get(str(path.relative_to(SOURCES)), set())
        if others:
            found[str(path.relative_to(SOURCES))] = others
    assert found == {}
    assert not [name for name in OPENED if not (SOURCES / name).exists()]
    assert len(list(SOURCES.glob("regrow_lab/**/*.py"))) > 50


@pytest.mark.parametrize("read", [content_of, check_readable, open_file])
@pytest.mark.parametrize("trap", TRAPS)
def test_what_is_no_file_is_refused_at_once(trap: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    make, message = TRAPS[trap]
    make(path)
    with within(20), pytest.raises(ValueError, match=f"^{path} {message}"):
        read(path)


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b", "a+b"])
@pytest.mark.parametrize("trap", ["named pipe", "folder", "socket"])
def test_nor_is_it_written_to(trap: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    make, message = TRAPS[trap]
    make(path)
    with within(20), pytest.raises(ValueError, match=f"^{path} {message}"):
        open_file(path, mode)


def test_a_file_that_must_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"secret")

    def forbidden(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(reading.os, "open", forbidden)  # whoever runs the tests may be allowed everything
    with pytest.raises(ValueError, match=rf"^{path} cannot be read \(Permission denied\): mend that"):
        content_of(path)
    with pytest.raises(PermissionError):
        open_file(path, "ab")


def test_a_file_that_is_not_there_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none" / "none"):
        with pytest.raises(FileNotFoundError):
            content_of(path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be read \(Not a directory\)"):
        content_of(tmp_path / "file" / "none")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"twelve bytes")

    def while_reading(change: Callable[[IO[bytes]], object]) -> bytes:
        def changed(descriptor: int) -> os.stat_result:
            found = stat(descriptor)
            looked.append(found)
            if len(looked) == 3:  # it is open, and its size is known
                with path.open("r+b") as file:
                    change(file)
            return found

        stat, looked = os.fstat, list[os.stat_result]()
        with monkeypatch.context() as patch:
            patch.setattr(reading.os, "fstat", changed)
            return content_of(path)

    assert while_reading(lambda file: (file.seek(0, 2), file.write(b" and more"))) == b"twelve bytes"
    with pytest.raises(ValueError, match=rf"^{path} was cut while it was read"):
        while_reading(lambda file: file.truncate(3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": "\xff"}', "byte 7 is no UTF-8"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": -Infinity}', "-Infinity is no finite number"),
        (b'{"a": 1e999}', "1e999 is no finite number"),
        (b'{"a": 1, "a": 2}', "a name stands twice"),
        (b'{"a": [{"b": {"c": 1, "c": 1}}]}', "a name stands twice"),
        (b'{"\\u001b": 1, "\\\\x1b": 2}', "a name stands twice"),
        (b"[" * 10**5, "nested too deeply"),
        (b'{"a":' * 10**5, "nested too deeply"),
        (b"9" * 5000, "Exceeds the limit"),
        (b"", "Expecting value"),
        (b"\xef\xbb\xbf{}", "BOM|Expecting value"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_that_says_something_else_than_it_seems(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        json_of(text)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_all_text_in_json_can_be_shown(value: Any) -> None:
    def printable(value: Any) -> bool:
        if isinstance(value, dict):
            return all(map(printable, (*value, *value.values())))
        return all(map(printable, value)) if isinstance(value, list) else shown(value).isprintable()

    with contextlib.suppress(ValueError):  # of two names that are shown alike
        found = json_of(json.dumps(value).encode())
        assert printable(found)
        assert found == value or not printable_as_it_is(value)


def printable_as_it_is(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(printable_as_it_is, (*value, *value.values())))
    if isinstance(value, list):
        return all(map(printable_as_it_is, value))
    return not isinstance(value, str) or value.isprintable()


@given(st.text())
def test_what_is_shown_is_printable_and_says_what_it_was(text: str) -> None:
    assert shown(text).isprintable()
    assert shown(text) == text or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\r", r"a\nb\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066x\u2069\u200b", r"\u2066x\u2069\u200b"),
        ("\udcff", r"\udcff"),
        ("\x9b31m", r"\x9b31m"),
        ("größer × 測試", "größer × 測試"),
    ],
)
def test_characters_that_a_terminal_obeys(text: str, expected: str) -> None:
    assert shown(text) == expected
