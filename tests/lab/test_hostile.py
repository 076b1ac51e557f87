"""Damaged and hostile files at every door: read, or refused with a ValueError; never anything else, never executed."""

import contextlib
import copy
import gzip
import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from doors import DOORS, net, run_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from traps import TRAPS, within

import regrow
from regrow.checksummed_files import digest
from regrow.procedures.stage_files import StageFolder
from regrow_lab import data
from regrow_lab.commands.cli import main
from regrow_lab.commands.tune import optuna_storage
from regrow_lab.data import cifar, decoded_cache, hugging_face
from regrow_lab.data.folder import check_one_size, decode_file
from regrow_lab.data.idx import read_idx
from regrow_lab.data.sets import IMAGE_SETS
from regrow_lab.data.source import Decoded, Source, md5_of
from regrow_lab.launch import slurm
from regrow_lab.run import checkpoint_files
from regrow_lab.run.starting_point import Origin
from regrow_lab.store import folders, whole_files

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


def in_the_run(name: str) -> Callable[[Path], object]:
    """Reads the run of which something else stands in the place of a file."""

    def read(path: Path) -> object:
        folder = path.with_name("run")
        shutil.copytree(run_folder(), folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path)
        return Origin.read(folder, torch.device("cpu")) if name == "weights.pt" else folders.read_run(folder)

    return read


def renamed(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Reads a path that goes by this name."""

    def opened(path: Path) -> object:
        path.with_name(name).symlink_to(path)
        return read(path.with_name(name))

    return opened


def claimed(folder: Path) -> None:
    with folders.claim(folder):
        pass


PATHS: dict[str, Callable[[Path], object]] = {
    "config.json": in_the_run("config.json"),
    "result.json": in_the_run("result.json"),
    "metrics.jsonl": in_the_run("metrics.jsonl"),
    "weights.pt": in_the_run("weights.pt"),
    "study.json": renamed("study.json", lambda path: folders.read_study(path.parent)),
    "lock": renamed("lock", lambda path: claimed(path.parent)),
    "trials": lambda path: optuna_storage.open_storage(optuna_storage.address_of(f"sqlite:///{path}", path.parent), 60),
    "jobs of SLURM": renamed("array-1.json", lambda path: slurm._table(path, "jobs")),
    "log of a job": slurm._says_out_of_memory,
    "checkpoint.pt": lambda path: checkpoint_files.load(path, checkpoint_files.CHECKPOINT),
    "level of a ticket": renamed("level-00.pt", lambda path: StageFolder(path.parent, {}).load("level-00")),
    "compact net": lambda path: regrow.load_compact(net(), path),
    "image": decode_file,
    "size of images": lambda path: check_one_size([path]),
    "idx": read_idx,
    "text": renamed("mine.txt", lambda path: data._load_text("mine.txt", torch.device("cpu"), path.parent)),
    "archive": lambda path: list(cifar._packed(cifar.CIFAR_10[0], path)),
    "batch": renamed("data_batch_1", lambda path: list(cifar._unpacked(cifar.CIFAR_10[1], path.parent))),
    "parquet": renamed("train.parquet", hugging_face._columns),
    "arrow": renamed("train.arrow", hugging_face._columns),
    "download": md5_of,
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", PATHS)
def test_what_is_no_file_is_refused_at_every_door(name: str, trap: str, tmp_path: Path) -> None:
    path = tmp_path / "trap"
    TRAPS[trap][0](path)
    run_folder()  # trained before the time is taken
    said = None
    try:
        with within(60):
            PATHS[name](path)
    except (ValueError, whole_files.NotWrittenError) as error:
        said = str(error)
    assert said is None or str(tmp_path) in said
    assert said is not None or trap in ("loop", "ring")  # a way that leads nowhere is taken for nothing


@pytest.mark.parametrize("trap", ["named pipe", "folder", "/dev/zero"])
def test_a_cache_that_is_no_file_is_made_again(trap: str, tmp_path: Path) -> None:
    TRAPS[trap][0](tmp_path / "trap")
    with within(60):
        assert decoded_cache._load(tmp_path / "trap", "key") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("study.json", b'{"schema": 1, "study": "digits", "seeds": 1000000000000000000}', "seeds is 10"),
        ("study.json", b'{"schema": 1, "study": "digits", "seeds": 1e999}', "1e999 is no finite number"),
        ("study.json", b"[" * 10**6, "it is nested too deeply"),
        ("runs/one/metrics.jsonl", b"\xff\n", "metrics.jsonl, line 1 is no JSON"),
        ("runs/one/result.json", b'{"schema": 1, "seconds": NaN}', "result.json is not readable JSON"),
        ("runs/one/config.json", b'{"schema": 1, "seed": -1}', "config.json is damaged: seed must be 0 or more"),
    ],
)
def test_the_command_says_in_a_line_which_file_it_was(
    name: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_folder(), tmp_path / "runs" / "one")
    (tmp_path / name).write_bytes(content)
    with within(60):
        assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("regrow: ")
    assert said.count("\n") == 1
    assert Path(name).name in said
    assert message in said


@pytest.mark.parametrize("seeds", [10**18, -1, 1001])
def test_no_command_lists_more_runs_than_a_study_has(seeds: int, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("study", "tune"):
        with within(60):
            assert main([command, "digits", "--seeds", str(seeds)]) == 2
        assert f"needs {'1 seed or more' if seeds < 1 else '1,000 seeds or fewer'}, given" in capsys.readouterr().err


def test_an_archive_of_tensors_that_would_fill_the_memory(tmp_path: Path) -> None:
    """Compressed parts, and parts that lie in one place: both are larger than the file that holds them."""
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(10**6)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    assert len(packed.getvalue()) < 10**5
    shared = io.BytesIO()
    with zipfile.ZipFile(shared, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
        largest = max(archive.infolist(), key=lambda part: part.file_size)
        for number in range(100):
            again = copy.copy(largest)
            again.filename = f"archive/data/{number + 1}"
            archive.filelist.append(again)
    for content in (packed.getvalue(), shared.getvalue()):
        path = tmp_path / "weights.pt"
        line = {"regrow": "weights", "schema": 1, "bytes": len(content), "blake2b": digest(content)}
        path.write_bytes(json.dumps(line).encode() + b"\n" + content)
        with pytest.raises(
            ValueError, match=r"weights.pt is refused, nothing of it was run: .* is compressed, or lies where"
        ):
            checkpoint_files.load(path, checkpoint_files.WEIGHTS)


@pytest.mark.parametrize("label", [2**62, 2**31, 10, -1])
def test_labels_do_not_decide_how_much_memory_is_taken(label: int) -> None:
    images, labels = torch.zeros(1, dtype=torch.uint8).expand(60_000, 28, 28, 1), torch.arange(60_000) % 10
    found = Decoded(images, labels, images[:10_000], labels[:10_000].clone().index_fill_(0, torch.tensor([5]), label))
    source = Source("idx files", (Path("a/b"),), lambda: found)
    with pytest.raises(ValueError, match="the labels are not 0 to 9"):
        IMAGE_SETS["mnist"].check(found, source)


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
