"""What a study would take: said before anything is trained, and agreed to where it is a lot."""

import dataclasses
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from stored import made_study, store_run

from regrow_lab.commands.cli import main
from regrow_lab.commands.estimate import estimated
from regrow_lab.config import RunConfig
from regrow_lab.data.sets import IMAGE_SETS
from regrow_lab.launch import Local, Outcome
from regrow_lab.run import timed_step
from regrow_lab.studies import STUDIES

RUNS = [
    RunConfig(method=method, sparsity=sparsity, seed=seed, multiplier=multiplier)
    for method, multiplier in (("rigl", 1), ("rigl", 2), ("set", 1))
    for sparsity in (0.9, 0.8)
    for seed in range(2)
]
HERE = {"machine": f"{platform.system()} {platform.machine()}, 1 thread"}
Studies = Callable[..., None]


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Studies:
    """Has these be all the studies, in an empty current folder without data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGROW_DATA", "DATA")
    monkeypatch.setattr(timed_step, "seconds_of_a_step", lambda run, device, noise=False: (0.5, 10))

    def put(**runs: list[RunConfig]) -> None:
        for name in list(STUDIES):
            monkeypatch.delitem(STUDIES, name)
        for name, of_one in runs.items():
            monkeypatch.setitem(
                STUDIES, name, dataclasses.replace(made_study(name, of_one), cost="DEAR", expected="LOW")
            )

    return put


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(
    studies: Studies, capsys: pytest.CaptureFixture[str]
) -> None:
    studies(digits=RUNS)
    out = Path("out")
    for run in RUNS[:2]:  # a minute, 60 epochs
        store_run(out, run.method, run.sparsity, seed=run.seed, result=HERE | {"seconds": 60.0})
    before = sorted(out.rglob("*"))
    assert main(["study", "digits", "--dry-run", "--out", "out", "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("digits, scale small: 12 runs, 2 of them finished in out\n")
    rows = [line.split() for line in said.splitlines()]
    assert ["RigL", "(ERK)", "lenet-300-100", "digits", "0.8,", "0.9", "4"] in rows
    assert ["RigL_2x", "(ERK)", "lenet-300-100", "digits", "0.8,", "0.9", "4"] in rows
    assert "data digits: comes with scikit-learn" in said
    # 2 RigL of a minute, 4 of two; 4 SET of 60 epochs of 10 steps of half a second: 1800 s, two at a time
    assert "time for the 10 runs that are left: some 15 minutes, 2 runs at a time" in said
    assert "6 runs: as those of their kind took that out holds" in said
    assert "lenet-300-100 on digits: a step of the dense net takes 0.5 s, timed here and now" in said
    assert "cost: DEAR" in said
    assert "expected: LOW" in said
    assert sorted(out.rglob("*")) == before
    assert [path.name for path in Path().iterdir()] == ["out"]


def test_runs_of_their_kind_are_looked_for_in_the_folder_then_under_results(studies: Studies) -> None:
    studies()
    (set_,) = {run for run in RUNS if run.method == "set" and run.sparsity == 0.9 and not run.seed}

    def asked(device: str = "cpu") -> tuple[float | None, str]:
        found = estimated([set_], [Path("out")], device, lambda run: (0.5, 10))
        return found.seconds, found.because[0]

    assert asked()[0] == 300.0
    for other in ({"model": "wrn-10-1", "data": "digits-images"}, {"batch_size": 32}, {"precision": "bf16"}):
        store_run(Path("results/other"), "set", 0.9, result=HERE | {"seconds": 6.0}, **other)
    store_run(Path("results/elsewhere"), "set", 0.9, result={"seconds": 6.0, "machine": "NVIDIA H200"})
    store_run(Path("results/diverged"), "set", 0.9, None, result=HERE | {"seconds": 6.0})
    Path("results/README.md").write_text("no folder of runs")
    assert asked()[0] == 300.0, "none of these is of its kind and finished"
    store_run(Path("results/longer"), "set", 0.5, epochs=600, result=HERE | {"seconds": 600.0})
    assert asked() == (60.0, "1 runs: as those of their kind took that results/longer holds")
    store_run(Path("out"), "set", 0.8, result=HERE | {"seconds": 66.0})
    assert asked() == (66.0, "1 runs: as those of their kind took that out holds")


def test_a_dry_run_says_which_data_are_missing_and_where_they_must_lie(
    studies: Studies, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_noise = []

    def step(run: RunConfig, device: str, noise: bool = False) -> tuple[float, int] | None:
        on_noise.append(noise)
        return (0.5, 10) if run.data in IMAGE_SETS else None

    monkeypatch.setattr(timed_step, "seconds_of_a_step", step)
    studies(digits=RUNS[:1], table1=[RunConfig(data="cifar10", epochs=720)], mine=[RunConfig(data="my/pictures")])
    assert main(["study", "all", "--dry-run", "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "data cifar10: CIFAR-10 is not in DATA (looked in " in said
    assert "run `regrow data fetch cifar10`, or set REGROW_DATA to the folder that holds it" in said
    assert "time for the 1 runs that are left: some 60 minutes, 1 run at a time" in said
    assert "data my/pictures: unknown data 'my/pictures'" in said
    assert "nobody can tell how long" in said
    assert "1 runs of lenet-300-100 on my/pictures: no stored run tells, and there are no data" in said
    assert on_noise == [False, True, True]
    assert not list(Path().iterdir())


def test_the_time_of_a_step_is_measured_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    run = RunConfig(method="lottery", sparsity=0.9, storage="compact", multiplier=3)
    found = timed_step.seconds_of_a_step(run, "cpu")
    assert found is not None
    assert 1e-5 < found[0] < 1
    assert found[1] == 21  # 1,297 digits, 64 a step
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(timed_step, "SLOW", 0.0)
    proportional = timed_step.seconds_of_a_step(run, "cpu")
    assert proportional is not None
    assert proportional[1] == 21


def test_data_that_are_missing_are_noise_of_their_sizes() -> None:
    cpu = torch.device("cpu")
    assert timed_step.noise_like("my/pictures", cpu) is None
    found = timed_step.noise_like("mnist", cpu)
    assert found is not None
    assert found.train_inputs.shape == (60_000, 28, 28, 1)
    assert found.num_classes == 10
    assert len(found.parts(RunConfig(data="mnist", validation=1_000)).train) == 59_000


@pytest.mark.parametrize("command", ["study table1", "study all", "study table1 --launcher torchrun", "tune digits"])
def test_the_papers_scale_on_a_cpu_is_agreed_to(
    command: str, studies: Studies, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("regrow_lab.commands.tune.command.missing_data", lambda runs: [])
    studies(table1=RUNS, table2=RUNS)
    assert main([*command.split(), "--scale", "paper", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert "runs at the paper's scale on a CPU: some " in said
    assert "a step of the dense net takes 0.5 s, timed here and now): give --yes to begin, or --device cuda" in said
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_agreed_costs_and_finished_studies_are_not_asked_about(
    studies: Studies, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studies(table1=RUNS[:1])
    trained = []
    monkeypatch.setattr(Local, "launch", lambda self, runs, *_: trained.append(runs) or Outcome())
    monkeypatch.setattr("regrow_lab.commands.study.print_report", lambda _: None)
    assert main(["study", "table1", "--scale", "paper", "--out", "out", "--yes"]) == 0
    store_run(Path("out"), "rigl", 0.9)
    assert main(["study", "table1", "--scale", "paper", "--out", "out"]) == 0
    assert len(trained) == 2
    assert main(["study", "table1", "--out", "small"]) == 0
    assert capsys.readouterr().err == ""


def test_the_version_is_said_with_those_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert (
        capsys.readouterr().out
        == f"regrow {version('regrow')}, torch {version('torch')}, Python {platform.python_version()}\n"
    )
