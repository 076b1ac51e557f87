"""The search for (alpha, dT): what it tries, that it goes on whatever dies, and what its report says."""

import csv
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from searches import SHORT, children, points, trials_of, wait_until
from stored import store_run

from regrow_lab import store
from regrow_lab.cli import main
from regrow_lab.config import RunConfig
from regrow_lab.launch import WorkerError
from regrow_lab.studies import study_runs
from regrow_lab.train import train
from regrow_lab.tuning.pool import search
from regrow_lab.tuning.problem import Problem, problems
from regrow_lab.tuning.report import Searched, Trial
from regrow_lab.tuning.search import ATTRIBUTE, Search, begin
from regrow_lab.tuning.storage import open_storage


def test_the_points_are_those_of_the_report_scaled_to_the_setting() -> None:
    found = problems("digits", 3)
    assert [problem.name for problem in found] == [
        f"{distribution}-s{sparsity}" for distribution in ("uniform", "erk") for sparsity in (0.9, 0.8, 0.5)
    ]
    assert found[0].first == [{"alpha": 0.3, "dT": 100}]
    runs = found[0].runs({"alpha": 0.3, "dT": 100})
    assert [run.seed for run in runs] == [0, 1, 2]
    assert {(run.drop_fraction, run.every, run.validation, run.method) for run in runs} == {(0.3, 20, 130, "rigl")}
    assert found[0].runs({"alpha": 0.459, "dT": 550})[0].every == 110
    paper = problems("cifar10", 1, scale="paper")[0]
    assert paper.runs({"alpha": 0.2, "dT": 50})[0].every == 50
    assert (paper.base.model, paper.base.validation) == ("wrn-22-2", 5_000)


def test_the_grid_of_figure_3_is_that_study_run_for_run() -> None:
    of_grid = [run for problem in problems("figure3", 2) for point in problem.first for run in problem.runs(point)]
    assert sorted(run.run_id for run in of_grid) == sorted(run.run_id for run in study_runs("figure3", 2))


def test_a_search_tries_the_reference_first_and_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    whole = Search(name="s", directory=tmp_path / "whole", trials=4)
    search(whole, [SHORT], 1, print)
    tried = trials_of(whole)
    assert [trial.state for trial in tried] == [TrialState.COMPLETE] * 4
    assert tried[0].params == {"alpha": 0.3, "dT": 100}
    results = [train(run, tmp_path / "whole")["validation_accuracy"] for run in SHORT.runs(tried[1].params)]
    assert tried[1].value == sum(results) / 2

    parts = Search(name="s", directory=tmp_path / "parts", trials=2)
    search(parts, [SHORT], 1, print)
    search(Search(name="s", directory=tmp_path / "parts", trials=4), [SHORT], 1, print)
    assert points(trials_of(parts)) == points(tried)
    assert [trial.value for trial in trials_of(parts)] == [trial.value for trial in tried]


def test_runs_that_stand_are_not_trained_again(tmp_path: Path) -> None:
    before = [train(run, tmp_path) for run in SHORT.runs({"alpha": 0.3, "dT": 100})]
    search(Search(name="s", directory=tmp_path, trials=1), [SHORT], 1, print)
    assert [train(run, tmp_path) for run in SHORT.runs({"alpha": 0.3, "dT": 100})] == before
    assert len(store.read_runs(tmp_path)) == 2


def test_a_killed_worker_does_not_lose_its_trial(tmp_path: Path) -> None:
    options = Search(name="s", directory=tmp_path, trials=3)
    base = RunConfig(method="rigl", sparsity=0.9, epochs=20, every=2, validation=130)
    long = Problem(name="erk-s0.9", base=base, seeds=1)
    said: list[str] = []
    thread = threading.Thread(target=search, args=(options, [long], 1, said.append))
    thread.start()
    wait_until(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")))
    [worker] = children("spawn_main")
    os.kill(worker, signal.SIGKILL)
    thread.join(120)
    assert any("worker 0 died (exit code -9): another takes its trial over" in line for line in said)
    tried = trials_of(options, long)
    assert [trial.state for trial in tried].count(TrialState.COMPLETE) == 3
    assert tried[0].state == TrialState.FAIL
    assert points(tried)[0] == tried[0].params == {"alpha": 0.3, "dT": 100}


def test_the_workers_of_a_search_are_spread_over_all_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("regrow_lab.machine.device_named", torch.device)
    devices: list[str] = []

    class Process:
        """Does nothing, and ends well."""

        exitcode = 0

        def __init__(self, args: tuple[object, Search, object], **_: object) -> None:
            devices.append(args[1].device)

        def start(self) -> None: ...

        def join(self) -> None: ...

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Process", Process)
    search(Search(name="s", directory=tmp_path, trials=1, device="cuda"), [SHORT], 2, print)
    assert devices == ["cuda:0", "cuda:1", "cuda:2"] * 2


def test_hopeless_trials_are_given_up_where_it_is_asked_for(tmp_path: Path) -> None:
    options = Search(name="s", directory=tmp_path, trials=9, prune=True)
    said: list[str] = []
    search(options, [SHORT], 1, said.append)
    states = [trial.state for trial in trials_of(options)]
    assert len(states) == 9
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert states[:5] == [TrialState.COMPLETE] * 5
    assert sum("given up after 1 seed at" in line for line in said) == states.count(TrialState.PRUNED)


@pytest.mark.parametrize("seed", [42_950, 2**63])
def test_any_seed_does(seed: int, tmp_path: Path) -> None:
    search(Search(name="s", directory=tmp_path, trials=2, seed=seed), [SHORT], 1, print)
    assert len(store.read_runs(tmp_path)) == 4


def test_a_search_with_other_settings_is_refused(tmp_path: Path) -> None:
    options = Search(name="s", directory=tmp_path, trials=1)
    begin(options, [SHORT])
    other = Problem(name=SHORT.name, base=SHORT.base, seeds=3)
    with pytest.raises(ValueError, match=r"holds a search 's-erk-s0\.9' with other settings or seeds: give another"):
        begin(options, [other])


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "changed"])
def test_a_search_that_is_changed_while_it_goes_on_is_said_in_a_line(deleted: bool, tmp_path: Path) -> None:
    options = Search(name="s", directory=tmp_path, trials=50)

    def meddle(line: str) -> None:
        storage = open_storage(None, tmp_path, 60)
        name = options.study_name(SHORT)
        if not deleted:
            optuna.load_study(study_name=name, storage=storage).set_user_attr(ATTRIBUTE, "other")
        elif name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)

    with pytest.raises(WorkerError, match=r"^the search 's-erk-s0\.9' was (deleted|changed)") as caught:
        search(options, [SHORT], 1, meddle)
    assert str(tmp_path) in str(caught.value)
    assert len(store.read_runs(tmp_path)) >= 2


def test_the_command_writes_table_4_and_the_contours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    scores = {(0.3, 20): 90.0, (0.1, 10): 88.0, (0.6, 40): 95.0, (0.2, 200): 91.0, (0.5, 100): 93.0}
    for (alpha, every), score in scores.items():
        for seed in range(3):
            result = {"validation_accuracy": score + seed, "validation_loss": 0.1}
            settings = {"drop_fraction": alpha, "every": every, "validation": 130}
            store_run(out, "rigl", 0.9, score - 1 + seed, seed, "erk", result, **settings)
    store_run(out, "rigl", 0.9, 99.0, 0, "erk", {"validation_accuracy": 99.9}, drop_fraction=0.4, validation=130)
    store.write_json(out / "study.json", {"study": "tune-digits", "seeds": 3, "reference": {"alpha": 0.3, "every": 20}})
    assert main(["report", str(out)]) == 0
    assert "Given up, or not finished: 1 point." in capsys.readouterr().out
    [row] = csv.DictReader((out / "report" / "table4.csv").read_text().splitlines())
    assert (row["Method"], row["trials"], row["reference"]) == ("RigL (ERK)", "5", "90.0 ± 1.00")
    assert (row["alpha"], row["dT"], row["tuned"], row["gain"]) == ("0.600", "40", "95.0 ± 1.00", "+5.0")
    assert row["paper: tuned (alpha, dT)"] == "92.4 ± 0.23 (0.416, 200)"
    for file in ("contours.png", "contours.pdf", "report.md", "table4.md"):
        assert (out / "report" / file).stat().st_size > 500


@pytest.mark.parametrize(
    ("tried", "best"),
    [
        ([(0.3, 200), (0.3, 20)], (0.3, 20)),
        ([(0.2, 20), (0.3, 10), (0.3, 60)], (0.3, 10)),
        ([(0.3, 40), (0.31, 20)], (0.3, 40)),
    ],
    ids=["the reference itself", "dT by its ratio", "alpha before dT"],
)
def test_of_equals_the_one_nearest_to_the_reference_is_the_best(
    tried: list[tuple[float, int]], best: tuple[float, int]
) -> None:
    trials = tuple(Trial(alpha, every, (97.0,), (90.0,)) for alpha, every in tried)
    found = Searched(trials, Trial(0.3, 20, (97.0,), (90.0,))).best
    assert (found.alpha, found.every) == best


@pytest.mark.parametrize("reference", [{}, {"reference": 3}, {"reference": {"alpha": "x", "every": 20}}])
def test_a_search_without_its_reference_is_one_line(
    reference: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_run(tmp_path, validation=130)
    store.write_json(tmp_path / "study.json", {"study": "tune-digits", "seeds": 1, **reference})
    assert main(["report", str(tmp_path)]) == 2
    assert "study.json does not say the reference (alpha, dT) of the search: give" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_one_folder_has_one_number_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.write_json(tmp_path / "study.json", {"study": "tune-digits", "seeds": 5})
    before = (tmp_path / "study.json").read_bytes()
    assert main(["tune", "digits", "--seeds", "3", "--name", "three", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"regrow: {tmp_path} holds a search with 5 seeds a trial, given 3: give --seeds 5 or another"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
    assert (tmp_path / "study.json").read_bytes() == before


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--trials", "1", "--seeds", "1", "--sparsities", "0.9", "--distributions", "erk", "--workers", "1"]
    assert main(["tune", "digits", "--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert "trial   1/1  alpha 0.3, dT 20" in said
    assert "Reference and tuned (alpha, dT), lenet-300-100 on digits" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("digits --trials 0", "trials must be 1 or more, given 0"),
        ("digits --seed -1", "seed must be 0 or more, given -1"),
        ("digits --seeds 0", "a trial needs 1 seed or more, given 0"),
        ("mnist", "the small scale is for digits"),
        ("digits --distributions best", "unknown distribution 'best': choose one of uniform, erk"),
        ("digits --sparsities 1.5", "sparsity 1.5 is outside [0, 1)"),
        ("digits --storage sqlite:///x.db", "given sqlite:///x.db; without --storage a journal on the disk is used"),
        ("digits --storage nonsense", "a database is given as postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        ("digits --storage postgresql://u:secret@127.0.0.1:abc/x", "a database is given as postgresql://USER"),
        ("digits --storage postgresql://u:se@secret@127.0.0.1:1/x", "with %40 for an @ in the password"),
        ("digits --storage sqlite:///x.db?password=secret", "given sqlite:///x.db; without"),
        ("digits --storage postgresql://u@127.0.0.1:1/x?password=secret", "u@127.0.0.1:1/x cannot be used"),
        ("digits --storage postgresql://u@127.0.0.1:1/x?password=secret&password=secret", "cannot be used"),
        ("digits --storage postgresql://u@127.0.0.1:1/x?pasword=secret", "cannot be used"),
        ("digits --storage postgresql:///x?host=127.0.0.1&port=1&password=secret", "cannot be used"),
        ("figure3 --trials 3", "figure3 is a grid of 16 points, each a trial: leave out --trials"),
        ("digits --storage postgresql://me:secret@127.0.0.1:1/x", "me:***@127.0.0.1:1/x cannot be used"),
    ],
)
def test_bad_wishes_are_one_line_and_write_nothing(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments.split(), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("regrow: ")
    assert message in said
    assert "secret" not in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_used_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "cifar-10-batches-bin").mkdir(parents=True)
    (tmp_path / "data" / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(b"x")
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "file").touch()
    for arguments in (
        ["cifar10", "--scale", "paper", "--out", str(tmp_path / "out")],
        ["digits", "--out", str(tmp_path / "file" / "x")],
    ):
        assert main(["tune", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("regrow: ")
        assert said.count("\n") == 1
        assert not (tmp_path / "out").exists()
