"""What can befall a checkpoint on its way: each is refused with a line that says which, and nothing is executed."""

import dataclasses
import errno
import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.checksummed_files import digest
from regrow_lab.config import RunConfig
from regrow_lab.run import checkpoint, checkpoint_files
from regrow_lab.run.resumable import train
from regrow_lab.run.training import Training
from regrow_lab.store import folders, whole_files

CPU = torch.device("cpu")
RIGL = RunConfig(method="rigl", sparsity=0.5, epochs=2, every=5)
STORED = {"dense": RIGL, "compact": dataclasses.replace(RIGL, storage="compact")}
ADAM = dataclasses.replace(RIGL, optimizer="adam", learning_rate=1e-3)
STEP = 25


class Stopped(BaseException):
    pass


def taken(config: RunConfig, path: Path) -> Path:
    """A checkpoint of the 25th step."""
    training = Training(config, CPU)

    def before_step() -> None:
        if training.step == STEP:
            checkpoint.write(path, training)
            raise Stopped

    training.run_epoch(before_step)
    with pytest.raises(Stopped):
        training.run_epoch(before_step)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taken(RIGL, tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt")


@pytest.fixture(scope="module")
def compact_too(written: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("compact") / "checkpoint.pt"
    return {"dense": written, "compact": taken(STORED["compact"], path)}


@pytest.fixture(scope="module")
def adam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taken(ADAM, tmp_path_factory.mktemp("adam") / "checkpoint.pt")


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
    state = checkpoint_files.load(written, checkpoint_files.CHECKPOINT)
    change(state)
    checkpoint_files.save(path, checkpoint_files.CHECKPOINT, state)
    return path


def test_it_goes_on_where_it_was_taken(written: Path) -> None:
    training = Training(RIGL, CPU)
    checkpoint.resume(training, written)
    losses = training.state_dict()["losses"]
    assert (training.step, len(training.rows), len(losses)) == (STEP, 1, STEP - 21)
    assert losses == checkpoint_files.load(written, checkpoint_files.CHECKPOINT)["losses"]
    assert all(losses)


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


def test_brackets_in_brackets(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"[" * 100_000)
    refused(path, "does not begin as a file of regrow does")


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
        (lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2, 2)), r"of shape \(2, 2\)"),
        (lambda state: state["model"].pop("fc1.weight"), "fc1.weight|Error"),
        (lambda state: state["model"].update({"fc1.weight": torch.zeros(1)}), "Error"),
        (
            lambda state: state["model"].update({"fc1.bias": torch.zeros(300).int()}),
            "its fc1.bias is a tensor of .*int32",
        ),
        (lambda state: state.update(step=float(STEP)), "its step is 25.0, a whole number was expected"),
        (lambda state: state.update(seconds=math.nan), "its seconds are nan"),
        (lambda state: state.update(rows=["x"]), "its metrics of epoch 1 are 'x'"),
        (lambda state: state["rows"][0].update(train_loss=[1]), "its metrics of epoch 1 are"),
        (lambda state: state.update(losses=["x"] * len(state["losses"])), "a loss is 'x'"),
        (
            lambda state: state.update(losses=[torch.zeros(5)] * len(state["losses"])),
            r"a loss is a tensor of shape \(5,\)",
        ),
        (lambda state: state.update(sparsifier=None), "it has no masks at step 25, and this run has"),
        (lambda state: state["sparsifier"]["layers"].pop("fc1.weight"), "it lacks layer 'fc1.weight'"),
        (lambda state: state.update(random=torch.zeros(3)), "RNG state"),
    ],
)
def test_parts_that_do_not_fit(
    written: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    refused(changed(written, tmp_path / "checkpoint.pt", change), message)


def buffers(*others: Any) -> list[Callable[[dict[str, Any]], None]]:
    """Each of the values in the place of the first momentum buffer."""
    return [lambda state, other=other: state["optimizer"]["state"][0].update(momentum_buffer=other) for other in others]


@pytest.mark.parametrize(
    "change",
    [
        *buffers(torch.tensor(3.0), torch.ones(1), torch.zeros(300, 64).int(), torch.zeros(300, 64).to_sparse()),
        *buffers([1], "x", None, 3.0, torch.zeros(300, 64).double(), torch.zeros(64, 300)),
        lambda state: state["optimizer"]["state"][0].clear(),
        lambda state: state["optimizer"]["state"][0].update(another=torch.zeros(300, 64)),
        lambda state: state["optimizer"]["state"].clear(),
        lambda state: state["optimizer"]["state"].pop(0),
        lambda state: state["optimizer"]["state"].update({0: 3}),
        lambda state: state["optimizer"].update(state=3),
    ],
)
@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_a_state_that_the_optimizer_does_not_make(
    compact_too: dict[str, Path], tmp_path: Path, storage: str, change: Callable[[dict[str, Any]], None]
) -> None:
    path = changed(compact_too[storage], tmp_path / "checkpoint.pt", change)
    refused(path, "momentum_buffer|its optimizer|parameter 0|int", STORED[storage])


@pytest.mark.parametrize("step", [-1.0, 0.5, math.nan, math.inf, 26.0, [1.0], torch.zeros(2)])
def test_a_number_of_steps_that_cannot_be(adam: Path, tmp_path: Path, step: Any) -> None:
    value = step if isinstance(step, torch.Tensor) else torch.tensor(step)
    path = changed(adam, tmp_path / "checkpoint.pt", lambda state: state["optimizer"]["state"][3].update(step=value))
    refused(path, "its step of parameter 3 is", ADAM)


def test_tensors_that_overlap_themselves_are_copied_into_ones_of_our_own(written: Path, tmp_path: Path) -> None:
    # A kernel that reads as many numbers from their start as they have would leave their memory.
    memory = torch.zeros(300 * 64)
    view = memory.as_strided((300, 64), (0, 0), storage_offset=len(memory) - 1)
    training = Training(RIGL, CPU)
    checkpoint.resume(training, changed(written, tmp_path / "checkpoint.pt", *buffers(view)))
    first = training.optimizer.state[training.optimizer.param_groups[0]["params"][0]]["momentum_buffer"]
    assert first.is_contiguous()


def test_settings_of_the_optimizer_are_those_of_the_run(written: Path, tmp_path: Path) -> None:
    training = Training(RIGL, CPU)
    path = tmp_path / "checkpoint.pt"
    checkpoint.resume(
        training, changed(written, path, lambda state: state["optimizer"]["param_groups"][0].update(maximize=True))
    )
    assert [group["maximize"] for group in training.optimizer.param_groups] == [False, False]


def more_alive_steps(saved: dict[str, Any]) -> None:
    """As a run has them that is one step further."""
    for layer in saved["layers"].values():
        layer["alive_steps"] += layer["alive_steps"] // 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.update(weight_steps=10**30), "'weight_steps' is a number of 100 bits"),
        (lambda saved: saved.update(num_updates=10**400), "'num_updates' is a number of 1329 bits"),
        (lambda saved: saved["groups"][0].update(next_update=None), "its next update is at None"),
        (lambda saved: saved["layers"]["fc1.weight"].update(alive_steps=300 * 64 * 21 + 1), "'alive_steps' of 'fc1.w"),
        (lambda saved: (saved.update(weight_steps=22), more_alive_steps(saved)), "its masks stand at weight step 22"),
    ],
)
def test_counters_of_the_masks_that_contradict_the_step(
    written: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    refused(changed(written, tmp_path / "checkpoint.pt", lambda state: change(state["sparsifier"])), message)


class Call:
    """Unpickled, it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def seal(path: Path, content: bytes) -> Path:
    line = {"regrow": "checkpoint", "schema": 1, "bytes": len(content), "blake2b": digest(content)}
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
    checkpoint_files.save(path, checkpoint_files.CHECKPOINT, {"losses": [torch.zeros(1).expand(2**50)]})
    refused(path, r"a tensor of shape \(1125899906842624,\) is larger than what it is stored as")
    checkpoint_files.save(path, checkpoint_files.CHECKPOINT, {"step": 0})
    refused(path, "config")


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.run_folder(tmp_path, RIGL)
    whole, original, writes = tmp_path / "whole", checkpoint_files.write_whole, 0
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

    monkeypatch.setattr(checkpoint_files, "write_whole", full)
    with pytest.raises(
        whole_files.NotWrittenError, match=r"checkpoint.pt could not be written \(No space left on device\)"
    ):
        train(RIGL, tmp_path, checkpoint_seconds=0)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "config.json", "metrics.jsonl"]
    assert checkpoint_files.load(folder / "checkpoint.pt", checkpoint_files.CHECKPOINT)["step"] == 1
    monkeypatch.undo()
    result = train(RIGL, tmp_path)
    assert {**result, **dict.fromkeys(OF_THE_MOMENT)} == {**expected, **dict.fromkeys(OF_THE_MOMENT)}


OF_THE_MOMENT = ("seconds", "samples_per_second", "peak_memory_mib", "date")
