"""One run on two processes: the masks of one process, and its accuracy up to the order of summation."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regrow_lab import sealed, store
from regrow_lab.config import RunConfig
from regrow_lab.launch import Torchrun
from regrow_lab.progress import PlainProgress
from regrow_lab.train import train

RUN = RunConfig(method="rigl", sparsity=0.9, epochs=8, every=5)


def weights(directory: Path, run: RunConfig = RUN) -> dict[str, dict[str, torch.Tensor]]:
    path = store.run_folder(directory, run) / "weights.pt"
    return sealed.load(path, sealed.WEIGHTS, torch.device("cpu"))


def test_two_processes_make_the_run_of_one(tmp_path: Path) -> None:
    alone = train(RUN, tmp_path / "one", keep_weights=True)
    outcome = Torchrun(processes=2).launch([RUN], tmp_path / "two", PlainProgress.__new__(Quiet))
    assert outcome.failed == {}
    assert outcome.finished == 1
    together = store.read_json(store.run_folder(tmp_path / "two", RUN) / "result.json")
    assert together["machine"].endswith("2 processes")
    assert together["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-3)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, mask in one["masks"].items():
        assert torch.equal(mask, two["masks"][name])
    for name, weight in one["model"].items():
        torch.testing.assert_close(weight, two["model"][name], rtol=1e-3, atol=1e-4)


def test_another_method_makes_the_masks_of_one_process(tmp_path: Path) -> None:
    run = RunConfig(method="set", sparsity=0.8, distribution="uniform", epochs=3, every=5)
    train(run, tmp_path / "one", keep_weights=True)
    assert Torchrun(processes=2).launch([run], tmp_path / "two", PlainProgress.__new__(Quiet)).finished == 1
    for name, mask in weights(tmp_path / "one", run)["masks"].items():
        assert torch.equal(mask, weights(tmp_path / "two", run)["masks"][name])


def test_with_batch_norm_the_processes_agree_though_not_with_one_process(tmp_path: Path) -> None:
    run = RunConfig(model="wrn-10-1", data="digits-images", method="rigl", sparsity=0.8, epochs=3, every=5, dropout=0.0)
    alone = train(run, tmp_path / "one", keep_weights=True)
    # A run whose processes end with different masks, or masks and weights that do not fit, is not finished.
    outcome = Torchrun(processes=2).launch([run], tmp_path / "two", PlainProgress.__new__(Quiet))
    assert (outcome.finished, outcome.failed) == (1, {})
    together = store.read_json(store.run_folder(tmp_path / "two", run) / "result.json")
    assert together["updates"] == alone["updates"] > 5
    one, two = weights(tmp_path / "one", run), weights(tmp_path / "two", run)
    for name, mask in one["masks"].items():
        assert two["masks"][name].sum() == mask.sum()
        assert not two["model"][name][~two["masks"][name]].any()
    [mean, *_] = [name for name in one["model"] if name.endswith("running_mean")]
    assert not torch.equal(one["model"][mean], two["model"][mean])
    assert together["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=10)


class Quiet(PlainProgress):
    """Says nothing."""

    total = finished = 0

    def note(self, line: str) -> None: ...


def test_a_run_that_cannot_be_trained_is_said_once_and_not_started(tmp_path: Path) -> None:
    wrong = RunConfig(model="nonsense")
    outcome = Torchrun(processes=2).launch([wrong], tmp_path, PlainProgress.__new__(Quiet))
    assert outcome.failed[wrong.run_id].startswith("unknown model 'nonsense'")
    assert not list(tmp_path.iterdir())


def test_a_run_on_two_processes_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    train(RUN, tmp_path / "one", keep_weights=True)
    counted = iter(range(10_000))
    with pytest.raises(store.StoppedError):
        train(RUN, tmp_path / "two", stopping=lambda: next(counted) == 50)
    command = Torchrun(processes=2).command(RUN, tmp_path / "two")
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(sys.prefix))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = store.read_run(store.run_folder(tmp_path / "two", RUN)).metrics
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    for name, mask in weights(tmp_path / "one")["masks"].items():
        assert torch.equal(mask, weights(tmp_path / "two")["masks"][name])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="1 process or more, given 0"):
        Torchrun(processes=0).check()
    with pytest.raises(ValueError, match="on cpu or cuda, given device 'cuda:1'"):
        Torchrun(device="cuda:1").check()
