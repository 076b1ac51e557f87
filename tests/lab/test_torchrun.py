"""One run on two processes: the masks of one process, and its accuracy up to the order of summation."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from searches import wait_until

from regrow_lab.config import RunConfig
from regrow_lab.launch import Torchrun, torchrun
from regrow_lab.launch.progress import PlainProgress
from regrow_lab.run import checkpoint_files
from regrow_lab.run.resumable import train
from regrow_lab.store import folders, whole_files

RUN = RunConfig(method="rigl", sparsity=0.9, epochs=8, every=5)


def weights(directory: Path, run: RunConfig = RUN) -> dict[str, dict[str, torch.Tensor]]:
    path = folders.run_folder(directory, run) / "weights.pt"
    return checkpoint_files.load(path, checkpoint_files.WEIGHTS, torch.device("cpu"))


def test_two_processes_make_the_run_of_one(tmp_path: Path) -> None:
    alone = train(RUN, tmp_path / "one", keep_weights=True)
    outcome = Torchrun(processes=2).launch([RUN], tmp_path / "two", PlainProgress.__new__(Quiet))
    assert outcome.failed == {}
    assert outcome.finished == 1
    together = whole_files.read_json(folders.run_folder(tmp_path / "two", RUN) / "result.json")
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
    together = whole_files.read_json(folders.run_folder(tmp_path / "two", run) / "result.json")
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
    wrong, later = RunConfig(model="nonsense"), [RunConfig(model="nothing")]
    progress = PlainProgress.__new__(Quiet)
    outcome = Torchrun(processes=2).launch([wrong], tmp_path, progress, lambda outcome: [later.pop()] if later else [])
    assert outcome.failed[wrong.run_id].startswith("unknown model 'nonsense'")
    assert len(outcome.failed) == 2, "runs that are asked for later are taken in too"
    assert not list(tmp_path.iterdir())


def test_whatever_a_run_cannot_begin_with_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("no such row")

    monkeypatch.setattr("regrow_lab.run.training.Training", broken)
    outcome = Torchrun(processes=2).launch([RunConfig()], tmp_path, PlainProgress.__new__(Quiet))
    assert outcome.failed == {RunConfig().run_id: "IndexError: no such row"}
    assert not list(tmp_path.iterdir())


def test_a_run_on_two_processes_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    train(RUN, tmp_path / "one", keep_weights=True)
    counted = iter(range(10_000))
    with pytest.raises(folders.StoppedError):
        train(RUN, tmp_path / "two", stopping=lambda: next(counted) == 50)
    assert Torchrun(processes=2).launch([RUN], tmp_path / "two", PlainProgress.__new__(Quiet)).finished == 1
    rows = folders.read_run(folders.run_folder(tmp_path / "two", RUN)).metrics
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    for name, mask in weights(tmp_path / "one")["masks"].items():
        assert torch.equal(mask, weights(tmp_path / "two")["masks"][name])


LONG = RunConfig(method="rigl", sparsity=0.9, epochs=2_000, every=5)
"""A run that is stopped before its end."""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that trains LONG with torchrun, a few epochs on."""
    script = f"""
import signal
from pathlib import Path
from rich.console import Console
from regrow_lab.config import RunConfig
from regrow_lab.launch import Torchrun
from regrow_lab.launch.progress import PlainProgress
from regrow_lab.commands.signals import terminating
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
with terminating():
    Torchrun().launch([RunConfig(**{LONG.to_dict()!r})], Path({str(tmp_path)!r}), PlainProgress(Console()))
"""
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: processes_of(tmp_path) and len(epochs(tmp_path)) > 2)
            yield process
        finally:
            process.kill()
            process.communicate()


def epochs(directory: Path) -> list[str]:
    path = folders.run_folder(directory, LONG) / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def processes_of(directory: Path) -> str:
    """Those that train in this folder, and the one that sees to them."""
    return subprocess.run(["pgrep", "-f", f"out {directory} "], capture_output=True, text=True).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_command_that_ends_takes_its_processes_along_and_they_leave_a_checkpoint(
    number: signal.Signals, command: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert len(processes_of(tmp_path).split()) == 3
    command.send_signal(number)
    command.wait(60)
    if number == signal.SIGKILL:
        wait_until(lambda: not processes_of(tmp_path))
    assert not processes_of(tmp_path)
    assert (folders.run_folder(tmp_path, LONG) / "checkpoint.pt").exists()


ENDED = {"status": "diverged", "test_accuracy": None, "diverged_at": 1, "train_ratio": 1.0, "seconds": 0.1}


@pytest.mark.parametrize("before", [True, False], ids=["before", "as-it-starts"])
def test_a_run_that_another_process_takes_is_waited_for(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    folder = folders.run_folder(tmp_path, RUN)
    another = ExitStack()
    starts: list[Path] = []

    def is_refused(_: Sequence[str], log: Path) -> int:
        starts.append(log)
        another.enter_context(folders.claim(folder))
        return 1

    class Progress(Quiet):
        def note(self, line: str) -> None:
            said.append(line)
            if "waiting for it" in line:
                whole_files.write_json(folder / "result.json", ENDED)
                another.close()

    monkeypatch.setattr(torchrun, "_run", is_refused)
    if before:
        another.enter_context(folders.claim(folder))
    outcome = Torchrun().launch([RUN], tmp_path, Progress.__new__(Progress))
    assert (outcome.finished, outcome.failed) == (1, {})
    assert len(starts) == (0 if before else 1)
    assert "is under way in process" in said[0]
    assert len(said) == 2, "nobody died"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="1 process or more, given 0"):
        Torchrun(processes=0).check()
    with pytest.raises(ValueError, match="on cpu or cuda, given device 'cuda:1'"):
        Torchrun(device="cuda:1").check()
