"""Damaged and hostile files at every door: read, or refused with a ValueError; never anything else, never executed."""

import contextlib
import gzip
import json
import struct
import zlib
from pathlib import Path

import pytest
from doors import DOORS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regrow_lab.data.folder import decode_file
from regrow_lab.data.idx import read_idx

EXTREMES = (
    b"\0" * 8,
    b"\xff" * 8,
    struct.pack("<q", 2**62),
    struct.pack(">i", -(2**31)),
    b"-1",
    b"1e999",
    b"null",
    b"{}",
)
EDITS = st.tuples(st.sampled_from(["flip", "cut", "repeat", "put", "end"]), st.floats(0, 1), st.integers(0, 39))


def edited(content: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    """The content after some edits, each at a share of its length."""
    changed = bytearray(content)
    for kind, share, number in edits:
        at = int(share * max(0, len(changed) - 1))
        if kind == "flip" and changed:
            changed[at] ^= 1 << number % 8
        elif kind == "cut":
            del changed[at : at + number + 1]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + number + 1]
        elif kind == "put":
            extreme = EXTREMES[number % len(EXTREMES)]
            changed[at : at + len(extreme)] = extreme
        elif kind == "end":
            del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("name", DOORS)
def test_a_sound_file_is_read(name: str) -> None:
    DOORS[name].read(DOORS[name].good())


@pytest.mark.parametrize("name", DOORS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(edits=st.lists(EDITS, min_size=1, max_size=3))
def test_a_damaged_file_is_read_or_refused(name: str, edits: list[tuple[str, float, int]]) -> None:
    with contextlib.suppress(ValueError):
        DOORS[name].read(edited(DOORS[name].good(), edits))


def test_an_idx_file_does_not_decide_how_much_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + (10).to_bytes(4) + bytes(10**8)))
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match="truncated or too long: its header promises 10 bytes"):
        read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100)))
    with pytest.raises(ValueError, match="it is damaged or a trap"):
        read_idx(path)


def test_a_picture_of_a_billion_pixels_in_a_few_bytes(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = (40_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))))
    with pytest.raises(ValueError, match="is no image that can be read"):
        decode_file(path)


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
def test_values_of_another_kind_are_read_or_refused(name: str) -> None:
    door = DOORS[name]
    fields = json.loads(door.good().splitlines()[0] if name.endswith("l") else door.good())
    refused = 0
    for key in fields:
        for value in ([], {}, "x", None, True, -1, 10**400, [[]], {"a": 1}):
            content = json.dumps({**fields, key: value}).encode() + b"\n"
            try:
                door.read(content)
            except ValueError:
                refused += 1
        with contextlib.suppress(ValueError):
            door.read(json.dumps({other: fields[other] for other in fields if other != key}).encode() + b"\n")
    assert refused > len(fields) or name == "metrics.jsonl"
