"""A search on a real PostgreSQL server, brought up for these tests: `make test-postgres`."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import postgres_server
import pytest
from optuna.trial import TrialState
from searches import SHORT, points, trials_of, wait_until

from regrow_lab import store
from regrow_lab.cli import main
from regrow_lab.launch import WorkerError
from regrow_lab.tuning.pool import search
from regrow_lab.tuning.problem import problems
from regrow_lab.tuning.queue import PLACE
from regrow_lab.tuning.search import Search, begin

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("postgres")
    yield postgres_server.start(folder), folder
    postgres_server.stop(folder)


def end(command: subprocess.Popen[str]) -> None:
    """Kill what a failed test has left, with its workers."""
    if command.poll() is None:
        os.killpg(command.pid, signal.SIGKILL)
    command.communicate()


def test_eight_processes_share_a_search_in_postgresql_and_two_are_killed(
    postgres: tuple[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, _ = postgres
    arguments = ["tune", "digits", "--storage", url, "--name", "eight", "--trials", "24", "--seeds", "2"]
    arguments += ["--sparsities", "0.9", "--distributions", "erk", "--workers", "1", "--heartbeat-seconds", "3"]
    # Each on a machine of its own, so to say: four folders for eight processes.
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "regrow_lab", *arguments, "--out", str(tmp_path / f"{number % 4}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for number in range(8)
    ]
    request.addfinalizer(lambda: [end(command) for command in commands])
    options = Search(name="eight", directory=tmp_path, url=url, heartbeat_seconds=3)
    problem = problems("digits", 2, sparsities=[0.9], distributions=["erk"])[0]

    def in_state(state: TrialState) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in trials_of(options, problem) if trial.state == state]

    def at_work() -> set[int]:
        workers = {trial.user_attrs["worker"] for trial in in_state(TrialState.RUNNING) if "worker" in trial.user_attrs}
        with contextlib.suppress(ProcessLookupError):  # one has just ended
            return {os.getpgid(int(worker.split()[0])) for worker in workers}
        return set()

    killed: list[int] = []

    def two_at_work() -> bool:
        killed[:] = sorted(at_work())[:2]
        return len(killed) == 2

    wait_until(two_at_work, 200)
    for group in killed:
        os.killpg(group, signal.SIGKILL)
    for command in commands:
        said, _ = command.communicate(timeout=300)
        assert command.returncode == (-signal.SIGKILL if command.pid in killed else 0), said
    tried = trials_of(options, problem)
    assert len(in_state(TrialState.COMPLETE)) == 24
    assert not in_state(TrialState.RUNNING)
    assert not in_state(TrialState.WAITING)
    lost = [trial for trial in tried if trial.state == TrialState.FAIL and PLACE in trial.user_attrs]
    assert lost, "those of the killed; those of which several workers queued the point have no place"
    assert all(trial.params in points(tried) for trial in lost if len(trial.params) == 2), "others do them"
    places = [trial.user_attrs[PLACE] for trial in in_state(TrialState.COMPLETE)]
    assert sorted(places) == list(range(24))
    assert {"alpha": 0.3, "dT": 100} in points(tried)
    assert len({trial.user_attrs["worker"] for trial in tried if "worker" in trial.user_attrs}) >= 3


def test_a_wrong_password_is_one_line(
    postgres: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres[0].replace(postgres_server.PASSWORD, "guess")
    assert main(["tune", "digits", "--storage", url, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert 'password authentication failed for user "regrow"' in said
    assert "guess" not in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_password_may_stand_in_the_environment(
    postgres: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", postgres_server.PASSWORD)
    url = postgres[0].replace(f":{postgres_server.PASSWORD}@", "@")
    begin(Search(name="no-password", directory=tmp_path, url=url), [SHORT])
    assert trials_of(Search(name="no-password", directory=tmp_path, url=url)) == []


def ask(url: str, *questions: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for question in questions:
            connection.execute(question.encode())


def once(act: Callable[[], object]) -> Callable[[str], None]:
    """What is to be told the lines of a search: acts at the first."""
    left = [act]

    def hear(line: str) -> None:
        if left:
            left.pop()()

    return hear


def test_a_database_that_is_away_for_a_moment_is_waited_for(postgres: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = postgres
    others = "from pg_stat_activity where usename = 'regrow' and pid <> pg_backend_pid()"
    cut_off = f"select pg_terminate_backend(pid) {others}"
    options = Search(name="cut-off", directory=tmp_path, url=url, trials=4, heartbeat_seconds=1)

    def trouble() -> None:
        ask(url, *[cut_off] * 50)
        postgres_server.stop(folder)
        time.sleep(3)
        postgres_server.start_again(folder)
        ask(url, *[cut_off] * 50)

    search(options, [SHORT], 2, once(trouble))
    tried = trials_of(options)
    assert len(points(tried)) == 4
    assert points(tried)[0] == {"alpha": 0.3, "dT": 100}
    assert len(store.read_runs(tmp_path)) == 8


def test_a_database_that_goes_away_costs_nothing_and_once_it_is_back_the_same_command_goes_on(tmp_path: Path) -> None:
    server = tmp_path / "server"
    url = postgres_server.start(server)
    options = Search(name="s", directory=tmp_path / "out", url=url, trials=4, heartbeat_seconds=3)
    with pytest.raises(WorkerError, match=r"^the database is gone .*; the same command goes on"):
        search(options, [SHORT], 1, once(lambda: postgres_server.stop(server)))
    before = {run.folder.name: run.result for run in store.read_runs(tmp_path / "out") if run.result}
    assert len(before) >= 2
    with pytest.raises(ValueError, match="cannot be used"):
        search(options, [SHORT], 1, print)
    postgres_server.start_again(server)
    try:
        search(options, [SHORT], 1, print)
        assert len(points(trials_of(options))) == 4
    finally:
        postgres_server.stop(server)
    after = {run.folder.name: run.result for run in store.read_runs(tmp_path / "out")}
    assert len(after) == 8
    assert before.items() <= after.items(), "nothing is trained twice"


TABLES = ("study_user_attributes", "trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes")
TABLES += ("trial_system_attributes", "trial_heartbeats", "trials", "study_directions", "studies")


@pytest.mark.parametrize(
    "questions",
    [[f"delete from {table}" for table in TABLES], ["drop schema public cascade", "create schema public"]],
    ids=["rows", "tables"],
)
def test_rows_that_are_deleted_under_a_search_are_one_line_and_it_begins_anew(
    questions: list[str], tmp_path: Path
) -> None:
    server = tmp_path / "server"
    url = postgres_server.start(server)
    options = Search(name="s", directory=tmp_path / "out", url=url, trials=3, heartbeat_seconds=3)
    try:
        with pytest.raises(WorkerError, match=r"the same command (begins it anew|goes on)") as caught:
            search(options, [SHORT], 1, once(lambda: ask(url, *questions)))
        assert "\n" not in str(caught.value)
        search(options, [SHORT], 1, print)
        assert points(trials_of(options))[0] == {"alpha": 0.3, "dT": 100}
        assert len(points(trials_of(options))) == 3
    finally:
        postgres_server.stop(server)
