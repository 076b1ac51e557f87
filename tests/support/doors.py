"""Every place where the library and the lab read a file that may be damaged or hostile, for the tests that try.

A door takes the bytes of a file. It may return, or raise ValueError; anything else is a defect.
"""

import functools
import gzip
import io
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import regrow
from regrow.checksummed_files import digest
from regrow_lab.config import RunConfig
from regrow_lab.data import cifar, decoded_cache
from regrow_lab.data.folder import decode_file
from regrow_lab.data.idx import read_idx
from regrow_lab.data.pickles import read_pickle
from regrow_lab.report.summary import summarise
from regrow_lab.run import checkpoint, checkpoint_files
from regrow_lab.run.training import Training
from regrow_lab.store import folders
from regrow_lab.store.packed import packed_runs

RIGL = RunConfig(method="rigl", sparsity=0.5)
FOLDER = Path(tempfile.mkdtemp(prefix="doors-"))


@dataclass(frozen=True)
class Door:
    """A sound file, and what reads it."""

    good: Callable[[], bytes]
    read: Callable[[bytes], object]


def from_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def opened(content: bytes) -> object:
        path = FOLDER / name
        path.write_bytes(content)
        return read(path)

    return opened


@functools.cache
def run_folder() -> Path:
    config = RunConfig(epochs=1)
    from regrow_lab.run.resumable import train

    train(config, FOLDER / "study", keep_weights=True)
    return folders.run_folder(FOLDER / "study", config)


@contextmanager
def put_in_place(path: Path, content: bytes) -> Iterator[None]:
    good = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(good)


def packed(name: str, compress: Callable[[bytes], bytes]) -> Door:
    directory = FOLDER / f"packed-{name}"

    def good() -> bytes:
        shutil.copytree(run_folder(), directory / "runs" / run_folder().name, dirs_exist_ok=True)
        return compress(folders.pack(directory).path.read_bytes())

    def read(content: bytes) -> object:
        directory.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
        return summarise(packed_runs(directory).values())

    return Door(good, read)


def of_a_run(name: str) -> Door:
    def read(content: bytes) -> object:
        folder = run_folder()
        with put_in_place(folder / name, content):
            run = folders.read_run(folder)
            return summarise([run]), RunConfig.from_dict(run.config)

    return Door(lambda: (run_folder() / name).read_bytes(), read)


def resealed(read: Callable[[bytes], object], kind: str, schema: int) -> Callable[[bytes], object]:
    """The content under a line that says it is whole: what the checksum does not catch."""

    def opened(content: bytes) -> object:
        line = {"regrow": kind, "schema": schema, "bytes": len(content), "blake2b": digest(content)}
        return read(json.dumps(line).encode() + b"\n" + content)

    return opened


@functools.cache
def a_checkpoint() -> bytes:
    training = Training(RIGL, torch.device("cpu"))
    checkpoint.write(FOLDER / "good.pt", training)
    return (FOLDER / "good.pt").read_bytes()


def resumed(path: Path) -> None:
    checkpoint.resume(Training(RIGL, torch.device("cpu")), path)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


@functools.cache
def a_compact_file() -> bytes:
    model = net()
    regrow.compact(
        model, {name: torch.rand(value.shape) < 0.3 for name, value in model.state_dict().items() if value.dim() > 1}
    )
    regrow.save_compact(model, FOLDER / "good.safetensors")
    return (FOLDER / "good.safetensors").read_bytes()


def pruned(folder: Path) -> object:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def train(first: int, last: int) -> None:
        for _ in range(first, last):
            model(torch.ones(2, 8)).sum().backward()
            optimizer.step()

    return list(regrow.iterative_pruning(model, optimizer, train, total_steps=2, levels=0, folder=folder))


@functools.cache
def level_folder() -> Path:
    pruned(FOLDER / "levels")
    return FOLDER / "levels"


def of_a_level(content: bytes) -> object:
    with put_in_place(level_folder() / "level-00.pt", content):
        return pruned(level_folder())


def an_image() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def a_cache() -> bytes:
    tensors = [torch.zeros(3, 4, 4, 1, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)]
    decoded_cache._keep(FOLDER / "cache.pt", "key", decoded_cache.Decoded(*tensors, *tensors))
    return (FOLDER / "cache.pt").read_bytes()


def a_batch() -> bytes:
    return pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [1, 2]}, protocol=2)


IDX = b"\0\0\x08\x03" + b"".join(size.to_bytes(4) for size in (2, 3, 4)) + bytes(24)
DOORS = {
    "checkpoint.pt": Door(a_checkpoint, from_file("checkpoint.pt", resumed)),
    "checkpoint.pt, checksum renewed": Door(
        lambda: a_checkpoint().partition(b"\n")[2], resealed(from_file("resealed.pt", resumed), "checkpoint", 1)
    ),
    "weights.pt": Door(
        lambda: (run_folder() / "weights.pt").read_bytes(),
        from_file("weights.pt", lambda path: checkpoint_files.load(path, checkpoint_files.WEIGHTS)),
    ),
    "compact net (safetensors)": Door(
        a_compact_file, from_file("net.safetensors", lambda path: regrow.load_compact(net(), path))
    ),
    "level of a ticket": Door(lambda: (level_folder() / "level-00.pt").read_bytes(), of_a_level),
    "level of a ticket, checksum renewed": Door(
        lambda: (level_folder() / "level-00.pt").read_bytes().partition(b"\n")[2], resealed(of_a_level, "stage", 2)
    ),
    "config.json": of_a_run("config.json"),
    "result.json": of_a_run("result.json"),
    "metrics.jsonl": of_a_run("metrics.jsonl"),
    "runs.jsonl": packed("runs.jsonl", lambda content: content),
    "runs.jsonl.gz": packed("runs.jsonl.gz", lambda content: gzip.compress(content, mtime=0)),
    "CIFAR, python form": Door(a_batch, lambda content: cifar._decode(cifar.CIFAR_10[1], content, "batch")),
    "CIFAR, binary form": Door(
        lambda: bytes(2 * 3073), lambda content: cifar._decode(cifar.CIFAR_10[0], content, "batch")
    ),
    "any pickle": Door(lambda: pickle.dumps({"a": [1, (2.0, b"x")]}), lambda content: read_pickle(content, "pickle")),
    "idx": Door(lambda: IDX, from_file("idx3-ubyte", read_idx)),
    "idx, gzipped": Door(lambda: gzip.compress(IDX, mtime=0), from_file("idx3-ubyte.gz", read_idx)),
    "image": Door(an_image, from_file("image.png", decode_file)),
    "decoded data, cached": Door(a_cache, from_file("cache.pt", lambda path: decoded_cache._load(path, "key"))),
}
