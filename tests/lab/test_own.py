"""A model, data and a method of somebody's own, named on the command line: trained, resumed, counted, refused."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regrow_lab.commands.cli import main
from regrow_lab.config import RunConfig
from regrow_lab.data import Dataset
from regrow_lab.report.summary import summarise
from regrow_lab.run import checkpoint, own
from regrow_lab.run.build import net_of
from regrow_lab.run.resumable import train
from regrow_lab.run.starting_point import Origin
from regrow_lab.run.training import Training
from regrow_lab.store import folders
from regrow_lab.store.folders import read_runs
from regrow_lab.studies import study_runs

CPU = torch.device("cpu")
MODEL = """
from torch import nn


def build(num_classes, input_shape, multiplier=1.0):
    width = round(40 * multiplier)
    return nn.Sequential(nn.Linear(*input_shape, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, num_classes))


def few(num_classes):
    return nn.Linear(30, 2)


def plain(num_classes):
    return nn.Linear(30, num_classes)


def other_input(num_classes):
    return nn.Linear(7, num_classes)


def eager(num_classes, input_shape, depth):
    return nn.Linear(30, num_classes)


def careless(num_classes):
    return [][num_classes]


def number(num_classes):
    return 3


width = 40
"""
DATA = """
import random

import numpy as np
import torch


def load():
    drawn = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 4
    inputs = torch.randn(160, 30, generator=drawn) + 3 * torch.nn.functional.one_hot(labels, 30)
    return inputs[:120], labels[:120], inputs[120:], labels[120:]


def at_random():
    inputs = torch.randn(50, 30) + random.random() + np.random.rand()
    labels = torch.randint(3, (50,))
    return inputs.double(), labels.int(), inputs[:20].double(), labels[:20].int()


def images():
    shades = np.random.randint(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    return shades[:30], np.arange(30) % 3, shades[30:], np.arange(10) % 3


def missing():
    return open("nowhere.pt")


def three():
    return load()[:3]


def halves():
    return [each[:1] if i == 1 else each for i, each in enumerate(load())]


def fractions():
    return [each + 0.5 for each in load()]


def negative():
    return [each if i % 2 == 0 else each - 1 for i, each in enumerate(load())]


def infinite():
    return [each * float("inf") if i == 0 else each for i, each in enumerate(load())]


def differing():
    return [each[:, :7] if i == 2 else each for i, each in enumerate(load())]


def flat_bytes():
    return [(each * 0).byte() if i % 2 == 0 else each for i, each in enumerate(load())]


def lists():
    return [each.tolist() for each in load()]
"""
METHOD = """
from dataclasses import replace

import regrow


def recipe(**arguments):
    return replace(regrow.rigl(**arguments), name="blind", grow=regrow.scores.random)


def uniform_only(sparsity, total_steps):
    return regrow.rigl(sparsity=sparsity, total_steps=total_steps, every=2, distribution=regrow.uniform)


def curious(sparsity, temperature):
    return regrow.static(sparsity=sparsity)
"""
NAMES = {"model": "{}.model:build", "data": "{}.data:load", "method": "{}.method:recipe"}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package in the current folder: another one in each test, as a process imports a name once."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    package = tmp_path / "here" / name
    package.mkdir(parents=True)
    for file, text in (("__init__", ""), ("model", MODEL), ("data", DATA), ("method", METHOD)):
        (package / f"{file}.py").write_text(text)
    monkeypatch.chdir(package.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def config_of(mine: str, **fields: object) -> RunConfig:
    names = {what: name.format(mine) for what, name in NAMES.items()}
    return RunConfig(**{**names, "sparsity": 0.8, "epochs": 3, "every": 2, "batch_size": 32, **fields})  # type: ignore[arg-type]


def test_they_are_trained_and_stand_in_table_figure_and_report(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--model", f"{mine}.model:build", "--data", f"{mine}.data:load", "--epochs", "20", "--every", "2"]
    for method in (["--method", f"{mine}.method:recipe"], ["--method", "rigl"], ["--method", "small-dense"], []):
        assert main([*words, *method, *(["--sparsity", "0.8"] if method else []), "--out", "out"]) == 0
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    report = Path("out/report/report.md").read_text()
    assert f"{mine}.model:build on {mine}.data:load" in report.replace("\\", "")
    assert f"{mine}.method:recipe" in report.replace("\\", "")
    cell = next(each for each in summarise(read_runs(Path("out"))) if ":" in each.method)
    assert (cell.label, cell.group, cell.density) == (f"{mine}.method:recipe", 1, pytest.approx(0.2, abs=0.01))
    assert cell.mean is not None
    assert cell.mean > 60
    stored = json.loads(
        (folders.run_folder(Path("out"), config_of(mine, batch_size=64, epochs=20)) / "config.json").read_text()
    )
    assert [stored[what] for what in NAMES] == [name.format(mine) for name in NAMES.values()]


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_a_run_that_is_stopped_ends_bit_identical(mine: str, storage: str, tmp_path: Path) -> None:
    config = config_of(mine, storage=storage)
    whole = train(config, tmp_path / "whole", keep_weights=True)
    steps = iter(range(100))
    with pytest.raises(folders.StoppedError):
        train(config, tmp_path / "parts", keep_weights=True, stopping=lambda: next(steps) == 5)
    own.load.cache_clear()
    again = train(config, tmp_path / "parts", keep_weights=True)
    for name in ("test_accuracy", "test_loss", "densities", "train_flops"):
        assert again[name] == whole[name]
    ends = [Origin.read(folders.run_folder(tmp_path / each, config), CPU) for each in ("whole", "parts")]
    for name, tensor in ends[0].model.items():
        assert torch.equal(tensor, ends[1].model[name])


def test_data_that_have_changed_are_not_trained_on(mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = config_of(mine), tmp_path / "checkpoint.pt"
    checkpoint.write(path, Training(config, CPU))
    checkpoint.resume(Training(config, CPU), path)
    module = sys.modules[f"{mine}.data"]
    before = module.load()
    monkeypatch.setattr(module, "load", lambda: (before[0] + 1, *before[1:]))
    own.load.cache_clear()
    with pytest.raises(
        ValueError, match=r"data .*:load returns other samples than when it was written: have it return"
    ):
        checkpoint.resume(Training(config, CPU), path)


def test_data_drawn_at_random_are_the_same_in_every_process(mine: str) -> None:
    torch.manual_seed(5)
    one = own.load(f"{mine}.data:at_random", CPU)
    own.load.cache_clear()
    torch.manual_seed(6)
    other = own.load(f"{mine}.data:at_random", CPU)
    assert one is not other
    assert one.fingerprint == other.fingerprint
    assert (one.train_inputs.dtype, one.train_labels.dtype) == (torch.float32, torch.int64)
    assert own.load(f"{mine}.data:at_random", CPU) is other


def test_images_of_bytes_are_normalised_and_augmented(mine: str) -> None:
    found = own.load(f"{mine}.data:images", CPU)
    assert len(found.mean) == 3
    config = config_of(mine, model="wrn-10-1", data=f"{mine}.data:images", method="dense", sparsity=0.0)
    assert Training(config, CPU).data.example.shape == (1, 3, 6, 6)
    with pytest.raises(ValueError, match="model lenet-5 takes inputs of shape"):
        Training(RunConfig(model="lenet-5", data=f"{mine}.data:load"), CPU)


def test_floating_point_images_are_used_as_they_are() -> None:
    inputs, labels = torch.randn(8, 3, 6, 6), torch.arange(8) % 2
    parts = Dataset(inputs, labels, inputs, labels).parts(RunConfig())
    assert torch.equal(parts.example, inputs[:1])


def test_a_narrower_net_needs_a_multiplier(mine: str) -> None:
    config = config_of(mine, method="small-dense", sparsity=0.5)
    assert sum(p.numel() for p in net_of(config, num_classes=4, input_shape=(30,)).parameters()) < 40 * 34 * 0.6
    with pytest.raises(ValueError, match=r"have .*:plain take a multiplier of its widths"):
        Training(config_of(mine, model=f"{mine}.model:plain", method="small-dense", sparsity=0.5), CPU)


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        ("model", "nowhere.at_all:build", "there is no module nowhere in /"),
        (
            "model",
            "{}.nets:build",
            r"there is no module \S+\.nets in /.*: give package.module:function of build",
        ),
        ("model", "{}.model:bild", r"has .*build, .*, not bild: give package.module:function of build\(num_classes"),
        ("model", "{}.model:width", "is a int, no function: give package"),
        ("model", "{}.model:number", "returns a int: give package"),
        ("model", "{}.model:careless", r"fails with IndexError: list index out of range \(.*model.py, line 27\)"),
        ("model", "{}.model:eager", r"asks for depth, a run has num_classes, input_shape: give package"),
        ("model", "{}.model:few", r"returns \(1, 2\), expected \(1, 4\): a number for each of the classes"),
        (
            "model",
            "{}.model:other_input",
            r"for inputs \(1, 30\) of .* of data .*, fails with RuntimeError: mat1",
        ),
        ("data", "{}.data:lod", "not lod: give package.module:function of load"),
        ("data", "{}.data:missing", r"fails with FileNotFoundError: .*nowhere.pt"),
        ("data", "{}.data:three", "give four tensors or arrays"),
        ("data", "{}.data:lists", r"returns \(list, list, list, list\): give four tensors or arrays"),
        ("data", "{}.data:halves", r"float32 \(120, 30\), int64 \(1,\), .*: give each part as many labels as inputs"),
        ("data", "{}.data:fractions", "as many labels as inputs, whole numbers from 0"),
        ("data", "{}.data:negative", "as many labels as inputs, whole numbers from 0"),
        ("data", "{}.data:infinite", "inputs that are nan or infinite"),
        ("data", "{}.data:differing", "inputs of one kind and shape in both parts"),
        ("data", "{}.data:flat_bytes", r"images \(uint8, N × height × width × channels\)"),
        ("method", "{}.method:recip", r"not recip: give package.module:function of recipe\(sparsity, total_steps"),
        ("method", "{}.method:curious", "asks for temperature, a run has sparsity, total_steps, every"),
        ("method", "{}.model:few", "asks for num_classes, a run has sparsity"),
        ("method", "{}.data:load", "returns a tuple: give package"),
    ],
)
def test_wrong_ones_are_refused_in_one_line_before_anything_starts(
    mine: str, what: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {each: known.format(mine) for each, known in NAMES.items()} | {what: name.format(mine)}
    options = [word for each, known in names.items() for word in (f"--{each}", known)]
    assert main(["train", *options, "--sparsity", "0.8", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_a_module_that_fails_or_ends_is_refused(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    for number, text in enumerate(("1 / 0", "import nowhere_at_all", "raise SystemExit(3)", "def build(:")):
        Path(f"{mine}_{number}.py").write_text(text)
        assert main(["train", "--model", f"{mine}_{number}:build", "--out", "out"]) == 2
        said = capsys.readouterr().err
        assert f"importing {mine}_{number} fails with" in said or "there is no module nowhere_at_all" in said
        assert said.count("\n") == 1
    assert not Path("out").exists()


def test_a_recipe_that_takes_no_distribution_is_given_none(mine: str) -> None:
    run = Training(config_of(mine, method=f"{mine}.method:uniform_only"), CPU)
    assert run.algorithm is not None
    with pytest.raises(ValueError, match="takes no distribution, given 'erk': leave it out"):
        Training(config_of(mine, method=f"{mine}.method:uniform_only", distribution="erk"), CPU)
    uniform = Training(config_of(mine, distribution="uniform"), CPU)
    assert uniform.sparsifier is not None
    assert list(uniform.sparsifier.densities.values()) == pytest.approx([0.2, 0.2], abs=0.01)


def test_flops_of_ones_own(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "flops",
        f"{mine}.model:build",
        "--data",
        f"{mine}.data:load",
        "--method",
        f"{mine}.method:recipe",
        "--json",
    ]
    assert main([*words, "--method", f"{mine}.method:recipe"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["dense_flops"] == 2 * (30 * 40 + 40 * 4)
    assert counted["test_ratio"] == pytest.approx(0.1, abs=0.01)


def study_of(mine: str, **changes: str) -> list[str]:
    names = {each: known.format(mine) for each, known in NAMES.items()} | changes
    options = [word for each, known in names.items() if known for word in (f"--{each}", known)]
    return ["study", "table1", "--seeds", "1", "--workers", "2", "--out", "out", *options]


def test_a_study_is_done_with_them(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(study_of(mine)) == 0
    said = capsys.readouterr().out
    assert "13 runs: 0 finished before, 13 now" in said
    assert main(study_of(mine)) == 0
    assert "13 runs: 13 finished before, 0 now" in capsys.readouterr().out
    report = Path("out/report/report.md").read_text().replace("\\", "")
    assert f"{mine}.method:recipe" in report
    assert f"{mine}.model:build on {mine}.data:load" in report
    assert "not finished" not in report
    cells = summarise(read_runs(Path("out")))
    assert [cell.sparsity for cell in cells if cell.method == f"{mine}.method:recipe"] == [0.5, 0.8, 0.9]
    for changes in ({"method": ""}, {"model": ""}, {"method": f"{mine}.method:uniform_only"}):
        assert main(study_of(mine, **changes)) == 2
        assert "holds this study with m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [("model", "{}.model:few", "expected (1, 4)"), ("data", "{}.data:lod", "not lod"),
     ("data", "nowhere", "unknown data"), ("method", "{}.method:curious", "asks for temperature"),
     ("method", "rigI", "unknown method 'rigI'")],
)  # fmt: skip
def test_a_study_with_a_wrong_one_is_refused_before_anything_starts(
    mine: str, what: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(study_of(mine, **{what: name.format(mine)})) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_a_method_beside_those_of_a_study() -> None:
    runs = study_runs("table5", 2, method="a:b")
    own = [run for run in runs if run.method == "a:b"]
    assert {(run.sparsity, run.seed, run.distribution) for run in own} == {
        (sparsity, seed, None) for sparsity in (0.8, 0.9) for seed in (0, 1)
    }
    assert len(own) == 4
    assert runs[: -len(own)] == study_runs("table5", 2)
    assert {run.model for run in study_runs("table2", 1, model="a:c")} == {"a:c"}
    compact = study_runs("table2", 1, storage="compact", method="a:b")
    assert {run.storage for run in compact if run.method == "a:b"} == {"compact"}
    assert study_runs("table2", 1, method="rigl-struct")[-1].distribution == "erk"


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[Path], None]:
    """Draws a folder of images, two classes of them."""

    def draw(folder: Path) -> None:
        for part, number in (("train", 6), ("test", 2)):
            for shade, label in enumerate(("cat", "dog")):
                (folder / part / label).mkdir(parents=True)
                for each in range(number):
                    pixels = np.full((8, 8, 3), 60 * shade + each, dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / part / label / f"{each}.png")

    return draw


def test_a_folder_may_lie_anywhere(
    photos: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "all"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in (tmp_path / "here" / "pets", tmp_path / "beside", tmp_path / "all" / "known"):
        photos(folder)
    Path("letters.txt").write_text("abc " * 500)
    for name in ("pets", "./pets/", "../beside", str(tmp_path / "beside"), "known"):
        config = RunConfig(data=name, epochs=1)
        assert len(Training(config, CPU).data.train) == 12, name
    assert RunConfig(data="./pets/").run_id == RunConfig(data="pets").run_id
    text = RunConfig(model="char-gru", data="letters.txt", sequence_length=16)
    assert Training(text, CPU).data.is_text
    with pytest.raises(ValueError, match=r"unknown data '../nowhere': choose one of .*, or package.module:load"):
        Training(RunConfig(data="../nowhere"), CPU)
