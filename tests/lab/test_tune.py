"""Searches: what they try, that they go on whatever dies, that nothing is trained twice, and what is refused."""

import contextlib
import dataclasses
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from rich.console import Console
from searches import PROBLEM, TRIALS, Instant, Killed, Killer, Machine, points, score_of, wait_until
from sqlalchemy.exc import OperationalError

from regrow_lab.commands.cli import main
from regrow_lab.commands.tune import search, trials
from regrow_lab.commands.tune.optuna_storage import quiet
from regrow_lab.commands.tune.search import refuse_others
from regrow_lab.commands.tune.trials import PROBLEM as ATTRIBUTE
from regrow_lab.commands.tune.trials import Search, SearchError, is_hopeless
from regrow_lab.launch import Outcome
from regrow_lab.launch.progress import SearchProgress
from regrow_lab.store import whole_files
from regrow_lab.studies import study_runs
from regrow_lab.studies.table4 import REFERENCE, problems

GRID = dataclasses.replace(
    PROBLEM, grid=tuple(dataclasses.replace(PROBLEM.base, drop_fraction=alpha) for alpha in (0.1, 0.2, 0.3, 0.4, 0.5))
)
OTHER = dataclasses.replace(
    PROBLEM, name="uniform-s0.9", base=dataclasses.replace(PROBLEM.base, distribution="uniform")
)


def test_the_points_are_those_of_the_report_scaled_to_the_setting() -> None:
    found = problems("digits", 3)
    assert [problem.name for problem in found] == [
        f"{distribution}-s{sparsity}" for distribution in ("uniform", "erk") for sparsity in (0.9, 0.8, 0.5)
    ]
    runs = found[0].runs(REFERENCE)
    assert [run.seed for run in runs] == [0, 1, 2]
    assert {(run.drop_fraction, run.every, run.validation, run.method) for run in runs} == {(0.3, 20, 130, "rigl")}
    assert found[0].runs({"alpha": 0.459, "dT": 550})[0].every == 110
    paper = problems("cifar10", 1, scale="paper")[0]
    assert paper.runs({"alpha": 0.2, "dT": 50})[0].every == 50
    assert (paper.base.model, paper.base.validation) == ("wrn-22-2", 5_000)


def test_the_grid_of_figure_3_is_that_study_run_for_run(tmp_path: Path) -> None:
    searched = problems("figure3", 2)
    of_grid = [run for problem in searched for point in problem.first(tmp_path) for run in problem.runs(point)]
    assert sorted(run.run_id for run in of_grid) == sorted(run.run_id for run in study_runs("figure3", 2))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    machine = Machine(tmp_path_factory.mktemp("undisturbed"))
    events: list[str] = []
    tried = machine.go(events.append)
    assert [trial.state for trial in tried] == [TrialState.COMPLETE] * TRIALS
    assert tried[0].params == REFERENCE
    assert events.count("run") == len(machine.launcher.trained) == 2 * TRIALS
    assert events.count("commit") > 60
    for trial in tried:
        assert trial.value == sum(map(score_of, PROBLEM.runs(trial.params))) / 2
    return machine


Deaths = st.lists(st.integers(0, 110), min_size=1, max_size=3)


@settings(max_examples=5, deadline=None)
@given(deaths=Deaths)
@example(deaths=[21] * 4)
@example(deaths=[60, 40, 41])
def test_no_death_at_any_moment_changes_what_is_tried(
    deaths: list[int], undisturbed: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine = Machine(tmp_path_factory.mktemp("killed"))
    for moment in deaths:
        with contextlib.suppress(Killed):
            machine.go(Killer(moment))
    tried = machine.go()
    assert points(tried) == points(undisturbed.trials())
    assert {trial.state for trial in tried} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert machine.launcher.trained == undisturbed.launcher.trained, "no run is trained twice, and none is missing"


@settings(max_examples=4, deadline=None)
@given(deaths=Deaths, at_a_time=st.sampled_from([1, 3, 8]))
def test_no_death_at_any_moment_loses_a_point_of_a_grid(
    deaths: list[int], at_a_time: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine = Machine(tmp_path_factory.mktemp("grid"), GRID)
    machine.launcher.at_a_time = at_a_time
    for moment in deaths:
        with contextlib.suppress(Killed):
            machine.go(Killer(moment))
    assert sorted(point["point"] for point in points(machine.go())) == [0, 1, 2, 3, 4]
    assert len(machine.launcher.trained) == len(set(machine.launcher.trained)) == 10


def test_several_searches_try_the_same_with_any_number_of_processes(undisturbed: Machine, tmp_path: Path) -> None:
    machine = Machine(tmp_path, PROBLEM, OTHER)
    machine.launcher.at_a_time = 4
    assert points(machine.go()) == points(undisturbed.trials())
    assert len(points(machine.trials(OTHER))) == TRIALS
    assert len(machine.launcher.trained) == 4 * TRIALS


@pytest.mark.parametrize("deleted", [True, False], ids=["storage-deleted", "with-its-storage"])
def test_a_search_goes_on_from_its_folder(deleted: bool, undisturbed: Machine, tmp_path: Path) -> None:
    machine = Machine(tmp_path, trials=3)
    machine.go()
    if deleted:
        shutil.rmtree(tmp_path / "tune")
    machine.settings = dataclasses.replace(machine.settings, trials=TRIALS)
    assert len(points(machine.go())) == TRIALS
    assert machine.launcher.trained == undisturbed.launcher.trained


def test_a_search_that_is_told_to_stop_inside_a_trial_keeps_its_place(undisturbed: Machine, tmp_path: Path) -> None:
    machine = Machine(tmp_path)

    def stop(kind: str) -> None:
        if kind == "run" and len(machine.launcher.trained) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.go(stop)
    states = [trial.state for trial in machine.trials()]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.FAIL, TrialState.WAITING], "others may have it at once"
    assert points(machine.go()) == points(undisturbed.trials())


def test_runs_that_were_deleted_are_trained_again(undisturbed: Machine, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.go()
    shutil.rmtree(tmp_path / "runs")
    said = io.StringIO()
    assert len(machine.go(console=Console(file=said))) == TRIALS
    assert machine.launcher.trained == undisturbed.launcher.trained * 2
    assert said.getvalue() == "10 runs of finished trials, gone from the folder: trained again\n"


def test_one_configuration_that_is_asked_for_twice_is_trained_once(tmp_path: Path) -> None:
    coarse = dataclasses.replace(PROBLEM, base=dataclasses.replace(PROBLEM.base, every=1))
    machine = Machine(tmp_path, coarse, trials=2)
    machine.launcher.at_a_time = 8
    study = machine.study()
    study.enqueue_trial({"alpha": 0.2, "dT": 50})
    study.enqueue_trial({"alpha": 0.2, "dT": 150})
    study.set_user_attr(ATTRIBUTE, coarse.fingerprint())
    values = [trial.value for trial in machine.go() if trial.params["alpha"] == 0.2]
    assert len(values) == 2
    assert values[0] == values[1]
    assert len(machine.launcher.trained) == 4, "two points of two seeds"


def test_a_diverged_run_is_worth_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, trials=1)
    machine.launcher.score = lambda run: None if run.seed else 80.0
    assert [trial.value for trial in machine.go()] == [40.0]


@pytest.mark.parametrize("seed", [42_950, 2**63])
def test_any_seed_does(seed: int, tmp_path: Path) -> None:
    assert len(Machine(tmp_path, trials=2, seed=seed).go()) == 2


def finished(machine: Machine, values: list[float]) -> None:
    """Trials with two seeds each, done by others."""
    study = machine.study()
    study.set_user_attr(ATTRIBUTE, machine.problems[0].fingerprint())
    space = Search(machine.settings, machine.problems[0], machine.storage()).space
    for number, value in enumerate(values):
        study.add_trial(
            optuna.create_trial(
                params={"alpha": 0.2 + number / 100, "dT": 50},
                distributions=space,
                value=value,
                intermediate_values={0: value, 1: value},
            )
        )


def test_hopeless_trials_are_given_up_after_a_seed_but_never_the_reference(tmp_path: Path) -> None:
    machine = Machine(tmp_path, trials=10, prune=True, url=f"sqlite:///{tmp_path}/x.db")
    finished(machine, [99.9] * 6)  # all are better
    said = io.StringIO()
    new = machine.go(console=Console(file=said, width=200))[6:]
    assert new[0].params == REFERENCE
    assert [trial.state for trial in new] == [TrialState.COMPLETE] + [TrialState.PRUNED] * 3
    assert len(machine.launcher.trained) == 2 + 3
    assert said.getvalue().count("given up after 1 seed at ") == 3


def test_a_lucky_first_seed_does_not_keep_a_trial_alive(tmp_path: Path) -> None:
    three = dataclasses.replace(PROBLEM, seeds=3)
    machine = Machine(tmp_path, three, trials=9, prune=True, url=f"sqlite:///{tmp_path}/x.db")
    finished(machine, [80.0 + number for number in range(6)])
    machine.launcher.score = lambda run: 10.0 if run.seed else 98.0
    given_up = [trial.intermediate_values for trial in machine.go() if trial.state == TrialState.PRUNED]
    assert given_up == [{0: 98.0, 1: 54.0}] * 2


def test_nothing_is_given_up_before_there_are_enough_to_compare_with(tmp_path: Path) -> None:
    assert not is_hopeless(0.0, 0, [])
    machine = Machine(tmp_path, trials=5, prune=True)
    assert [trial.state for trial in machine.go()] == [TrialState.COMPLETE] * 5


def test_many_machines_on_one_file_try_what_is_wished_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    machines = [Machine(tmp_path / str(number), url=url, trials=12) for number in range(4)]
    for machine in machines:
        machine.launcher.at_a_time = 2
    machines[0].study()  # so that they begin at once
    threads = [threading.Thread(target=machine.go) for machine in machines]
    with quiet():  # the filters of warnings are the process's, not a thread's
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    tried = machines[0].trials()
    assert len(points(tried)) == 12
    assert {trial.state for trial in tried} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert points(tried).count(REFERENCE) == 1
    trained = [name for machine in machines for name in machine.launcher.trained]
    assert len(trained) == len(set(trained)), "no machine trains what another has"


def test_a_trial_of_a_machine_that_died_is_tried_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, url=f"sqlite:///{tmp_path}/x.db", trials=3, heartbeat_seconds=1)
    with pytest.raises(Killed):
        machine.go(lambda kind: Killer(-1 if len(machine.launcher.trained) == 3 else 1)(kind))
    dead = machine.trials()[-1]
    assert dead.state == TrialState.RUNNING
    tried = machine.go()  # waits for two heartbeats at the end
    assert tried[dead.number].state == TrialState.FAIL
    assert dead.params in points(tried)
    assert len(points(tried)) == 3
    assert len(machine.launcher.trained) == 6
    # One that died before its first heartbeat has none that could stop.
    machine.settings = dataclasses.replace(machine.settings, trials=4)
    monkeypatch.setattr(trials, "UNSIGNED_SECONDS", 1)
    with quiet():
        machine.study().ask()
    assert [trial.state for trial in machine.go()][-2:] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_trial_that_others_took_for_dead_is_left_to_them(tmp_path: Path) -> None:
    machine = Machine(tmp_path, url=f"sqlite:///{tmp_path}/x.db", trials=3)

    def take(kind: str) -> None:
        if kind == "run" and len(machine.launcher.trained) == 3:
            machine.study().tell(1, state=TrialState.FAIL)

    tried = machine.go(take)
    assert [trial.state for trial in tried].count(TrialState.FAIL) == 1
    assert len(points(tried)) == 3


def meddled(machine: Machine, act: Callable[[], object]) -> str:
    """What is said where `act` happens in the middle of a search."""

    def meddle(kind: str) -> None:
        if kind == "run" and len(machine.launcher.trained) == 3:
            act()

    with pytest.raises(SearchError) as caught:
        machine.go(meddle)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "changed"])
def test_a_search_that_is_changed_while_it_goes_on_is_said_in_a_line(
    deleted: bool, undisturbed: Machine, tmp_path: Path
) -> None:
    machine = Machine(tmp_path)

    def act() -> None:
        study = machine.study()
        if deleted:
            optuna.delete_study(study_name=study.study_name, storage=machine.storage())
        else:
            study.set_user_attr(ATTRIBUTE, "other")

    said = meddled(machine, act)
    assert said.startswith("the search 's-erk-s0.9' was deleted or changed in its storage; its runs are in ")
    if not deleted:
        machine.settings = dataclasses.replace(machine.settings, name="again")
    assert points(machine.go()) == points(undisturbed.trials())
    assert machine.launcher.trained == undisturbed.launcher.trained


def test_a_storage_that_is_full_is_one_line_and_the_search_goes_on_once_there_is_room(
    undisturbed: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PATIENCE_SECONDS", 0.2)
    machine = Machine(tmp_path)
    machine.storage()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        said = meddled(machine, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.startswith("the storage is gone (")
    assert said.endswith("; the same command goes on once it is back")
    assert points(machine.go()) == points(undisturbed.trials())
    assert machine.launcher.trained == undisturbed.launcher.trained


def test_a_storage_that_is_away_for_a_moment_is_waited_for() -> None:
    left = [OperationalError("", {}, Exception("FATAL: away"))] * 2

    def act() -> str:
        if left:
            raise RuntimeError("Optuna's own") from left.pop()
        return "done"

    assert search._patiently(act, []) == "done"


def test_a_run_that_cannot_be_trained_ends_the_search_in_a_line(tmp_path: Path) -> None:
    class Broken(Instant):
        def launch(self, *_: Any) -> Outcome:
            return Outcome(failed={"rigl-x": "the disk is on fire"})

    machine = Machine(tmp_path)
    machine.launcher = Broken()
    with pytest.raises(SearchError, match=r"^rigl-x failed: the disk is on fire; once that is mended, the same"):
        machine.go()


def test_other_searches_of_the_same_name_are_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path, trials=1)
    machine.go()
    refuse_others(machine.settings, [PROBLEM], machine.storage())
    with pytest.raises(ValueError, match=r"holds a search 's-erk-s0\.9' with other settings or seeds: give another"):
        refuse_others(machine.settings, [dataclasses.replace(PROBLEM, seeds=3)], machine.storage())
    foreign = Machine(tmp_path / "foreign")
    foreign.study().enqueue_trial({"x": 1.0})
    with pytest.raises(ValueError, match="with other settings"):
        refuse_others(foreign.settings, [PROBLEM], foreign.storage())
    downhill = Machine(tmp_path / "downhill")
    optuna.create_study(storage=downhill.storage(), study_name="s-erk-s0.9", direction="minimize")
    with pytest.raises(ValueError, match="with other settings"):
        refuse_others(downhill.settings, [PROBLEM], downhill.storage())


def test_live_progress_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *problems("figure3", 2), trials=16)
    storage = machine.storage()
    searches = [Search(machine.settings, problem, storage) for problem in machine.problems]
    said = io.StringIO()
    progress = SearchProgress(Console(file=said, width=80, force_terminal=True, color_system=None))
    progress.begin(total=192, finished=0)
    with quiet():
        for _ in range(3):
            searches[0].ask()
            machine.launcher.launch(searches[0].wanted(), tmp_path, progress)
            assert [progress.trial(line) for line in searches[0].tell()] == [None]
        searches[0].ask()
    [first, _] = searches[0].wanted()
    progress.show([search.row() for search in searches])
    progress.epoch(None, first, {"epoch": 30})
    assert progress.bars.tasks[0].completed == 6.5
    progress.run(None, first, {"status": "diverged", "diverged_at": 3})
    assert progress.bars.tasks[0].total == 192
    progress.end()
    shown = Console(file=io.StringIO(), width=80)
    shown.print(progress._picture())
    lines = shown.file.getvalue().splitlines()
    assert lines[1].startswith("RigL, S = 0.9        3/16    84.30 %  learning rate 0.1, alpha 0.3, dT 20")
    assert lines[2].split() == ["RigL,", "S", "=", "0.8", "0/16"]
    assert "7/192" in lines[-1].replace(" ", "") or "6/192" in lines[-1]
    assert all(len(line) <= 80 for line in lines)
    assert "diverged at step 3" in said.getvalue()


COMMAND = ["--trials", "3", "--seeds", "1", "--sparsities", "0.9", "--distributions", "erk", "--workers", "1"]


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "regrow_lab", "tune", "digits", *COMMAND, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """At the end the process and its workers are no more."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_killed_command_goes_on_and_a_second_one_in_its_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    process = started("--out", out, "--checkpoint-seconds", "0")
    with ended(process):
        wait_until(lambda: list(tmp_path.glob("out/runs/*/result.json")))
        wait_until(lambda: list(tmp_path.glob("out/runs/*/checkpoint.pt")))
        assert main(["tune", "digits", *COMMAND, "--out", out]) == 2
        assert ": wait for it, or share a database with --storage" in capsys.readouterr().err
        os.kill(process.pid, signal.SIGKILL)  # its workers see that it is gone
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/result.json")}
    assert before
    assert main(["tune", "digits", *COMMAND, "--out", out]) == 0
    said = capsys.readouterr().out
    assert "trial  3/3" in said
    assert "Reference and tuned (alpha, dT), lenet-300-100 on digits" in said
    assert "1 search of 3 trials, " in said
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/result.json")}
    assert len(after) == 3
    assert before.items() <= after.items(), "nothing is trained twice"


def test_two_commands_share_one_file_and_one_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--storage", f"sqlite:///{tmp_path / 'shared.db'}", "--name", "two", "--heartbeat-seconds", "1"]
    process = started(*shared, "--out", str(tmp_path / "first"))
    with ended(process):
        wait_until(lambda: list(tmp_path.glob("first/runs/*/metrics.jsonl")))
        os.killpg(process.pid, signal.SIGKILL)
        assert main(["tune", "digits", *COMMAND, *shared, "--out", str(tmp_path / "second")]) == 0
    machine = Machine(
        tmp_path, problems("digits", 1, sparsities=[0.9], distributions=["erk"])[0], url=shared[1], name="two"
    )
    tried = machine.trials()
    assert points(tried)[0] == REFERENCE or points(tried).count(REFERENCE) == 1
    assert len(points(tried)) == 3
    assert [trial.state for trial in tried].count(TrialState.FAIL) == 1


def test_a_file_that_holds_no_trials_is_refused_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / "tune" / "trials.db"
    file.parent.mkdir(parents=True)
    file.write_text("no database " * 100)
    assert main(["tune", "digits", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{file} is no file of trials (file is not a database): give another; if it was one, move it away" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / "study.json").exists()


def test_one_folder_has_one_number_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_files.write_json(tmp_path / "study.json", {"study": "tune-digits", "seeds": 5})
    before = (tmp_path / "study.json").read_bytes()
    assert main(["tune", "digits", "--seeds", "3", "--name", "three", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"regrow: {tmp_path} holds a search with 5 seeds a trial, given 3: give --seeds 5 or another"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
    assert (tmp_path / "study.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("digits --trials 0", "trials must be 1 or more, given 0"),
        ("digits --seed -1", "seed must be 0 or more, given -1"),
        ("digits --seeds 0", "a trial needs 1 seed or more, given 0"),
        ("digits --heartbeat-seconds 0", "heartbeat must be 1 or more, given 0"),
        ("digits --workers 0", "workers must be 1 or more, given 0"),
        ("mnist", "there are searches on digits, digits-images, cifar10-jpeg, cifar10, given data 'mnist'"),
        ("digits --distributions best", "unknown distribution 'best': choose one of uniform, erk"),
        ("digits --sparsities 1.5", "sparsity 1.5 is outside [0, 1)"),
        ("digits --data cifar10", "the data to tune on are named by the study, 'digits': leave out --data cifar10"),
        (
            "digits --storage sqlite://",
            "a database is given as postgresql://USER:PASSWORD@HOST:PORT/NAME or sqlite:///",
        ),
        ("digits --storage sqlite:////no/such/folder/x.db", "/no/such/folder is no folder: give a file in one"),
        ("digits --storage mysql://u:secret@h/x", "given mysql://u:***@h/x; without --storage a file in the folder"),
        ("digits --storage nonsense", "a database is given as postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        ("digits --storage postgresql://u:secret@127.0.0.1:abc/x", "a database is given as postgresql://USER"),
        ("digits --storage postgresql://u:se@secret@127.0.0.1:1/x", "with %40 for an @ in the password"),
        ("digits --storage postgresql://u@127.0.0.1:1/x?password=secret", "u@127.0.0.1:1/x cannot be used"),
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
