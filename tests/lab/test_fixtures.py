"""Files that released versions wrote stay readable."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures.make import RUN, STEP, attached, levels, net

import regrow
from regrow.procedures.stage_files import SCHEMA
from regrow_lab.config import RunConfig
from regrow_lab.report.summary import summarise
from regrow_lab.run import checkpoint, checkpoint_files
from regrow_lab.run.build import net_of
from regrow_lab.run.training import Training
from regrow_lab.store import folders, whole_files

FIXTURES = Path(__file__).parent.parent / "fixtures"
VERSIONS = sorted(FIXTURES.glob("schema-*"))


STAGES = sorted(FIXTURES.glob("stages-*"))


def test_every_schema_has_its_files() -> None:
    assert [path.name for path in STAGES] == [f"stages-{number}" for number in range(1, SCHEMA + 1)]
    assert [path.name for path in VERSIONS] == [f"schema-{number}" for number in range(1, whole_files.SCHEMA + 1)]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_every_file_says_its_schema(folder: Path) -> None:
    number = int(folder.name.removeprefix("schema-"))
    for path in (folder / "study.json", folder / "run" / "config.json", folder / "run" / "result.json"):
        assert json.loads(path.read_text())["schema"] == number
    assert {json.loads(line)["schema"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()} == {
        number
    }
    for path in (folder / "checkpoint.pt", folder / "run" / "weights.pt"):
        assert json.loads(path.read_bytes().partition(b"\n")[0])["schema"] == number
    assert torch.load(folder / "sparsifier.pt", weights_only=True)["sparsifier"]["version"] == number
    assert f"regrow compact {number}".encode() in (folder / "net.safetensors").read_bytes()


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_a_finished_run_is_read(folder: Path, tmp_path: Path) -> None:
    run = folders.read_run(folder / "run")
    assert RunConfig.from_dict(run.config) == RUN
    assert [row["epoch"] for row in run.metrics] == [1, 2]
    [summary] = summarise([run])
    assert summary.mean == run.result["test_accuracy"]  # type: ignore[index]
    weights = checkpoint_files.load(folder / "run" / "weights.pt", checkpoint_files.WEIGHTS)
    net_of(RUN).load_state_dict(weights["model"])
    shutil.copy(folder / "study.json", tmp_path)
    folders.open_study(tmp_path, "digits", 3, scale="small", data="", storage="dense")


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_a_checkpoint_goes_on(folder: Path) -> None:
    training = Training(RUN, torch.device("cpu"))
    checkpoint.resume(training, folder / "checkpoint.pt")
    assert training.step == STEP
    row = training.run_epoch(lambda: None)
    assert row["epoch"] == 2


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_a_sparsifier_and_a_compact_net_are_loaded(folder: Path) -> None:
    saved = torch.load(folder / "sparsifier.pt", weights_only=True)
    model, sparsifier = attached()
    model.load_state_dict(saved["model"])
    sparsifier.load_state_dict(saved["sparsifier"])
    compact = regrow.load_compact(net(), folder / "net.safetensors")
    for name, weight in compact.state_dict().items():
        assert torch.equal(weight, saved["model"][name])


@pytest.mark.parametrize("folder", STAGES, ids=lambda path: path.name)
def test_levels_of_tickets_are_taken_up_and_not_trained_again(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "levels")

    def train(first: int, last: int) -> None:
        raise AssertionError("a level that lies there was trained again")

    whole, half = levels(tmp_path / "levels", train)
    assert sum(int(mask.sum()) for mask in whole.masks.values()) == 8 * 16 + 16 * 4
    assert sum(int(mask.sum()) for mask in half.masks.values()) == (8 * 16 + 16 * 4) // 2
