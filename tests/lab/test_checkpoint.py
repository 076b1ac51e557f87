"""What can befall a checkpoint on its way: each is refused with a line that says which, and nothing is executed."""

import dataclasses
import errno
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow_lab import checkpoint, sealed, store
from regrow_lab.config import RunConfig
from regrow_lab.train import train
from regrow_lab.training import Training

CPU = torch.device("cpu")
RIGL = RunConfig(method="rigl", sparsity=0.5, epochs=2, every=5)
STEP = 25


class Stopped(BaseException):
    pass


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the 25th step."""
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    training = Training(RIGL, CPU)

    def before_step() -> None:
        if training.step == STEP:
            checkpoint.write(path, training)
            raise Stopped

    training.run_epoch(before_step)
    with pytest.raises(Stopped):
        training.run_epoch(before_step)
    return path


def refused(path: Path, message: str, config: RunConfig = RIGL) -> None:
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.resume(Training(config, CPU), path)
    assert str(path) in str(error.value)
    assert str(error.value).endswith("; delete it to start the run anew")
    assert "\n" not in str(error.value)


def line_and_content(path: Path) -> tuple[dict[str, Any], bytes]:
    line, _, content = path.read_bytes().partition(b"\n")
    return json.loads(line), content


def changed(written: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The checkpoint with other content, sealed as if it were ours."""
    state = sealed.load(written, sealed.CHECKPOINT)
    change(state)
    sealed.save(path, sealed.CHECKPOINT, state)
    return path


def test_it_goes_on_where_it_was_taken(written: Path) -> None:
    training = Training(RIGL, CPU)
    checkpoint.resume(training, written)
    assert (training.step, len(training.rows), len(training.losses)) == (STEP, 1, STEP - 21)


@pytest.mark.parametrize("length", [0, 1, 50, 200, 5000, -1])
def test_cut_short(written: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(written.read_bytes()[:length])
    refused(path, "is cut short: it has" if length in (200, 5000, -1) else "does not begin as a file of regrow does")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(written: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(written.read_bytes())
    start = data.draw(st.sampled_from([0, len(content) // 2, len(content) - 2000]))
    bit = data.draw(st.integers(8 * start, 8 * min(len(content), start + 2000) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.mktemp("flipped") / "checkpoint.pt"
    path.write_bytes(content)
    refused(path, "damaged|does not begin as|cut short|has schema|is a file of")


def test_longer_than_it_says(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(written.read_bytes() + b"more")
    refused(path, "is damaged: its content does not add up to its checksum")


def test_of_another_kind_and_of_another_version(written: Path, tmp_path: Path) -> None:
    line, content = line_and_content(written)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(json.dumps({**line, "regrow": "weights"}).encode() + b"\n" + content)
    refused(path, "is a file of weights, a checkpoint was expected")
    path.write_bytes(json.dumps({**line, "schema": 2}).encode() + b"\n" + content)
    refused(path, "has schema 2, this version reads 1")
    for other in ({**line, "bytes": -1}, {**line, "bytes": True}, {**line, "blake2b": None}, [], {}):
        path.write_bytes(json.dumps(other).encode() + b"\n" + content)
        refused(path, "damaged")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 0.6}, "it is of another run: sparsity 0.5, here 0.6"),
        ({"model": "wrn-10-1", "data": "digits-images"}, "of another run: model 'lenet-300-100', here 'wrn-10-1'"),
        ({"method": "set"}, "it is of another run: method 'rigl', here 'set'"),
        ({"seed": 1}, "it is of another run: seed 0, here 1"),
    ],
)
def test_of_another_run(written: Path, fields: dict[str, Any], message: str) -> None:
    refused(written, message, dataclasses.replace(RIGL, **fields))


def test_a_field_that_did_not_exist_then_does_not_matter(written: Path, tmp_path: Path) -> None:
    path = changed(written, tmp_path / "checkpoint.pt", lambda state: state["config"].pop("storage"))
    checkpoint.resume(Training(RIGL, CPU), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(step=24), "it stands at step 24 with 1 epochs and 4 steps in hand"),
        (lambda state: state.update(step=-1), "it stands at step -1"),
        (lambda state: state.update(step=10**9), "it stands at step 1000000000"),
        (lambda state: state.pop("rows"), "rows"),
        (lambda state: state.update(optimizer=None), "NoneType"),
        (lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2, 2)), "has shape"),
        (lambda state: state["model"].pop("fc1.weight"), "fc1.weight|Error"),
        (lambda state: state["model"].update({"fc1.weight": torch.zeros(1)}), "Error"),
        (lambda state: state["sparsifier"]["layers"].pop("fc1.weight"), "it lacks layer 'fc1.weight'"),
        (lambda state: state.update(random=torch.zeros(3)), "RNG state"),
    ],
)
def test_parts_that_do_not_fit(
    written: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    refused(changed(written, tmp_path / "checkpoint.pt", change), message)


class Call:
    """Unpickled, it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def seal(path: Path, content: bytes) -> Path:
    line = {"regrow": "checkpoint", "schema": 1, "bytes": len(content), "blake2b": sealed._digest(content)}
    path.write_bytes(json.dumps(line).encode() + b"\n" + content)
    return path


def test_calls_are_not_made(tmp_path: Path) -> None:
    marker, path, buffer = tmp_path / "was here", tmp_path / "checkpoint.pt", io.BytesIO()
    torch.save({"step": Call(marker)}, buffer)
    refused(seal(path, buffer.getvalue()), "is refused, nothing of it was run")
    refused(seal(path, pickle.dumps(Call(marker))), "is refused, nothing of it was run")
    assert not marker.exists()


def test_bombs_and_lies_about_sizes(tmp_path: Path) -> None:
    path, buffer = tmp_path / "checkpoint.pt", io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    assert len(buffer.getvalue()) < 2 * 10**5
    refused(seal(path, buffer.getvalue()), "is compressed")
    sealed.save(path, sealed.CHECKPOINT, {"losses": [torch.zeros(1).expand(2**50)]})
    refused(path, r"a tensor of shape \(1125899906842624,\) is larger than what it is stored as")
    sealed.save(path, sealed.CHECKPOINT, {"step": 0})
    refused(path, "config")


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.run_folder(tmp_path, RIGL)
    whole, original, writes = tmp_path / "whole", sealed.write_whole, 0
    expected = train(RIGL, whole)

    def full(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
        nonlocal writes
        writes += 1

        def half(file: IO[bytes]) -> None:
            if writes == 3:
                file.write(b"half of it")
                raise OSError(errno.ENOSPC, "No space left on device")
            write(file)

        original(path, half)

    monkeypatch.setattr(sealed, "write_whole", full)
    with pytest.raises(store.NotWrittenError, match=r"checkpoint.pt could not be written \(No space left on device\)"):
        train(RIGL, tmp_path, checkpoint_seconds=0)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "config.json", "lock", "metrics.jsonl"]
    assert sealed.load(folder / "checkpoint.pt", sealed.CHECKPOINT)["step"] == 1
    monkeypatch.undo()
    result = train(RIGL, tmp_path)
    assert {**result, **dict.fromkeys(OF_THE_MOMENT)} == {**expected, **dict.fromkeys(OF_THE_MOMENT)}


OF_THE_MOMENT = ("seconds", "samples_per_second", "peak_memory_mib", "date")
