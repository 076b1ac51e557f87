"""Whole runs on images and on text: augmented, held out, streamed, in bf16; stopped and gone on with."""

import itertools
import math
import random
from pathlib import Path
from typing import Any

import pictures
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from regrow_lab import data as data_module
from regrow_lab.config import RunConfig
from regrow_lab.run import checkpoint_files
from regrow_lab.run.build import net_of
from regrow_lab.run.evaluation import evaluate
from regrow_lab.run.resumable import train
from regrow_lab.run.training import Training
from regrow_lab.store import folders, whole_files

CPU = torch.device("cpu")
OF_THE_MOMENT = ("seconds", "samples_per_second", "peak_memory_mib", "date")
IMAGES = {"data": "pictures", "model": "wrn-10-1", "epochs": 2, "batch_size": 6, "every": 3, "learning_rate": 0.05}
TEXT = {"data": "text.txt", "sequence_length": 12, "epochs": 2, "batch_size": 8, "every": 3, "learning_rate": 0.002}
RUNS = {
    "crop and flip": RunConfig(method="rigl", sparsity=0.5, augmentation="crop-flip", **IMAGES),
    "resized crop, held out, smoothed": RunConfig(
        augmentation="resized-crop-flip", validation=5, label_smoothing=0.1, schedule="step", decay_steps=5, **IMAGES
    ),
    "bf16, clipped, warmed up": RunConfig(
        method="set", sparsity=0.5, precision="bf16", clip=1.0, warmup_steps=3, augmentation="crop-flip", **IMAGES
    ),
    "gpt": RunConfig(model="gpt-1-16", method="rigl", sparsity=0.5, optimizer="adamw", validation=4, **TEXT),
    "gru": RunConfig(model="char-gru", method="snfs", sparsity=0.75, optimizer="adam", clip=10.0, **TEXT),
}


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(autouse=True)
def data_root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("REGROW_DATA", str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    pictures.write_image_folder(root / "pictures", train=15, test=5)
    words = random.Random(0).choices(["drop", "grow", "mask", "alive", "dead"], k=400)
    (root / "text.txt").write_text(" ".join(words))
    return root


def stop_before_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """From now on the `step`-th step of training (from 0) is never reached, once."""
    steps, original = itertools.count(), F.cross_entropy

    def cross_entropy(*arguments: Any, **options: Any) -> torch.Tensor:
        if next(steps) == step:
            monkeypatch.setattr(F, "cross_entropy", original)
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(F, "cross_entropy", cross_entropy)


def outcome(directory: Path, config: RunConfig) -> tuple[str, dict[str, Any], dict[str, Any]]:
    folder = folders.run_folder(directory, config)
    result = {
        key: value for key, value in whole_files.read_json(folder / "result.json").items() if key not in OF_THE_MOMENT
    }
    return (
        (folder / "metrics.jsonl").read_text(),
        result,
        checkpoint_files.load(folder / "weights.pt", checkpoint_files.WEIGHTS),
    )


def assert_stops_do_no_harm(config: RunConfig, whole: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config, whole, keep_weights=True)
    for step in (2, 6):
        stop_before_step(monkeypatch, step)
        with pytest.raises(Killed):
            train(config, stopped, checkpoint_seconds=0)
    torch.rand(3)
    train(config, stopped, keep_weights=True)
    (metrics, result, weights), (other_metrics, other_result, other_weights) = (
        outcome(directory, config) for directory in (whole, stopped)
    )
    assert metrics == other_metrics
    assert result == other_result
    for kind, tensors in weights.items():
        assert tensors.keys() == other_weights[kind].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other_weights[kind][name]), (kind, name)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RUNS[name]
    assert_stops_do_no_harm(config, tmp_path / "whole", tmp_path / "stopped", monkeypatch)
    result = whole_files.read_json(folders.run_folder(tmp_path / "whole", config) / "result.json")
    assert result["status"] == "finished"
    assert result["sparsity"] == pytest.approx(config.sparsity, abs=0.01)
    assert (
        (result["validation_accuracy"] is not None)
        == (result["validation_loss"] is not None)
        == bool(config.validation)
    )
    assert (result["test_bits"] is not None) == (config.data == "text.txt")
    assert result["samples_per_second"] > 0


@pytest.mark.parametrize("kind", ["colour", "grey", "hugging face"])
def test_a_streamed_run_is_the_run_in_memory_and_may_be_stopped(
    kind: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "grey":
        for path in (data_root / "pictures").rglob("*.png"):
            Image.open(path).convert("L").save(path)
    if kind == "hugging face":
        pictures.write_hugging_face(data_root / "pictures", remove=True)
    config = RunConfig(augmentation="crop-flip", validation=3, **IMAGES)
    train(config, tmp_path / "resident", keep_weights=True)
    data_module._load.cache_clear()
    monkeypatch.setattr(data_module, "memory_limit", lambda device: 0)
    if kind == "colour":
        assert_stops_do_no_harm(config, tmp_path / "streamed", tmp_path / "stopped", monkeypatch)
    train(config, tmp_path / "streamed", keep_weights=True)
    resident, streamed = (outcome(tmp_path / name, config) for name in ("resident", "streamed"))
    assert resident[:2] == streamed[:2]


def test_bright_is_told_from_dark() -> None:
    run = Training(RunConfig(**IMAGES | {"epochs": 6}), CPU)
    while not run.done:
        run.run_epoch(lambda: None)
    measured = run.measure(run.data.test)
    assert measured is not None
    assert measured.accuracy >= 80
    assert run.model.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_loss_of_a_text_is_in_bits_over_every_character(data_root: Path, tmp_path: Path) -> None:
    config = RUNS["gpt"]
    result = train(config, tmp_path, keep_weights=True)
    rows = folders.read_run(folders.run_folder(tmp_path, config)).metrics
    for row in rows:
        assert row["train_bits"] == pytest.approx(row["train_loss"] / math.log(2))
    assert rows[-1]["train_bits"] < rows[0]["train_bits"] < 8.1

    content = (data_root / "text.txt").read_bytes()
    text = torch.tensor(list(content))[int(0.9 * len(content)) :]
    model = net_of(config, num_classes=256, context=512).eval()
    model.load_state_dict(
        checkpoint_files.load(folders.run_folder(tmp_path, config) / "weights.pt", checkpoint_files.WEIGHTS)["model"]
    )
    total, last = 0.0, len(text) - 1
    for start in range(0, last, 12):
        begin = min(start, last - 12)  # the last window reaches back
        with torch.no_grad():
            loss = F.cross_entropy(
                model(text[None, begin : begin + 12])[0], text[begin + 1 : begin + 13], reduction="none"
            )
        total += float(loss[start - begin :].sum())
    assert result["test_bits"] == pytest.approx(total / last / math.log(2), rel=1e-5)
    assert result["test_loss"] == pytest.approx(total / last, rel=1e-5)


def test_smoothing_is_of_training_alone() -> None:
    run = Training(RunConfig(label_smoothing=0.5, **IMAGES), CPU)
    plain = Training(RunConfig(**IMAGES), CPU)
    assert run.measure(run.data.test) == plain.measure(plain.data.test)
    assert run.run_epoch(lambda: None)["train_loss"] != plain.run_epoch(lambda: None)["train_loss"]


def test_gradients_are_clipped() -> None:
    moved = []
    for clip in (0.0, 1e-3):
        run = Training(
            RunConfig(clip=clip, momentum=0.0, weight_decay=0.0, **IMAGES | {"batch_size": 30, "epochs": 1}), CPU
        )
        before = [parameter.detach().clone() for parameter in run.model.parameters()]
        run.run_epoch(lambda: None)
        steps = [(after - b).detach() for after, b in zip(run.model.parameters(), before, strict=True)]
        moved.append(torch.cat([step.flatten() for step in steps]).norm().item())
    assert moved[1] == pytest.approx(0.05 * 1e-3, rel=1e-3)
    assert moved[0] > 10 * moved[1]


def test_bf16_is_used_where_it_was_asked_for() -> None:
    seen = []
    for precision in ("float32", "bf16"):
        run = Training(RunConfig(precision=precision, **IMAGES), CPU)
        run.model.fc.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        evaluate(run.model, run.data.test, 10, run.precision())
        assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    assert seen == [torch.float32, torch.bfloat16]


def test_dropout_is_of_wide_residual_nets() -> None:
    for dropout in (0.0, 0.3):
        run = Training(RunConfig(dropout=dropout, **IMAGES), CPU)
        found = [module.p for module in run.model.modules() if isinstance(module, torch.nn.Dropout)]
        assert found == [dropout] * 3
    assert not any(isinstance(module, torch.nn.Dropout) for module in Training(RunConfig(), CPU).model.modules())


def test_signs_of_life_tell_the_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrow_lab.run.resumable.PULSE_SECONDS", 0.0)
    lines, pulses = [], []
    config = RunConfig(**IMAGES)
    train(config, tmp_path, report=lines.append, pulse=pulses.append)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [pulse["step"] for pulse in pulses] == list(range(10))
    assert [pulse["epoch"] for pulse in pulses] == [step / 5 for step in range(10)]
    assert all(row["samples_per_second"] > 0 for row in (*lines, *pulses[1:]))
    assert "samples_per_second" not in folders.read_run(folders.run_folder(tmp_path, config)).metrics[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_run_is_the_same_run(tmp_path: Path) -> None:
    config = {**IMAGES, "method": "rigl", "sparsity": 0.5}
    plain, compiled = (train(RunConfig(compiled=flag, **config), tmp_path) for flag in (False, True))
    assert compiled["updates"] == plain["updates"]
    assert compiled["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-3)
