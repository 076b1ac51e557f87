"""A search on a real PostgreSQL server, brought up for these tests: `make test-postgres`."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import postgres_server
import pytest
from optuna.trial import TrialState
from searches import PROBLEM, TRIALS, Machine, points, wait_until

from regrow_lab.commands.cli import main
from regrow_lab.commands.tune import search
from regrow_lab.commands.tune.trials import SearchError
from regrow_lab.studies.table4 import REFERENCE, problems

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("postgres")
    yield postgres_server.start(folder), folder
    postgres_server.stop(folder)


def test_four_machines_share_a_search_and_two_are_killed(
    postgres: tuple[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, _ = postgres
    arguments = ["tune", "digits", "--storage", url, "--name", "four", "--trials", "24", "--seeds", "2"]
    arguments += ["--sparsities", "0.9", "--distributions", "erk", "--workers", "2", "--heartbeat-seconds", "3"]
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "regrow_lab", *arguments, "--out", str(tmp_path / f"{number}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for number in range(4)
    ]

    def end() -> None:
        for command in commands:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
            command.communicate()

    request.addfinalizer(end)
    machine = Machine(tmp_path, problems("digits", 2, sparsities=[0.9], distributions=["erk"])[0], url=url, name="four")
    for command, number in zip(commands[:2], range(2), strict=True):
        wait_until(lambda number=number: list(tmp_path.glob(f"{number}/runs/*/metrics.jsonl")), 300)
        os.killpg(command.pid, signal.SIGKILL)
    for command in commands[2:]:
        said, _ = command.communicate(timeout=600)
        assert command.returncode == 0, said
    tried = machine.trials()
    states = [trial.state for trial in tried]
    assert states.count(TrialState.COMPLETE) == 24
    assert TrialState.RUNNING not in states
    assert TrialState.WAITING not in states
    lost = [trial for trial in tried if trial.state == TrialState.FAIL and len(trial.params) == 2]
    assert lost, "those of the killed"
    assert all(trial.params in points(tried) for trial in lost), "others do them"
    assert points(tried).count(REFERENCE) == 1


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
    assert len(points(Machine(tmp_path, url=url, name="no-password", trials=1).go())) == 1


def ask(url: str, *questions: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for question in questions:
            connection.execute(question.encode())


def once(machine: Machine, act: Callable[[], object]) -> Callable[[str], None]:
    """What is to be told the events of a search: acts before its fourth run."""
    left = [act]

    def hear(kind: str) -> None:
        if left and kind == "run" and len(machine.launcher.trained) == 3:
            left.pop()()

    return hear


def test_a_database_that_is_away_for_a_moment_is_waited_for(postgres: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = postgres
    others = "from pg_stat_activity where usename = 'regrow' and pid <> pg_backend_pid()"
    machine = Machine(tmp_path, url=url, name="away", heartbeat_seconds=1)

    def trouble() -> None:
        ask(url, *[f"select pg_terminate_backend(pid) {others}"] * 50)
        postgres_server.stop(folder)
        back = time.monotonic() + 3

        def again() -> None:
            wait_until(lambda: time.monotonic() > back)
            postgres_server.start_again(folder)

        threading.Thread(target=again).start()

    tried = machine.go(once(machine, trouble))
    assert len(points(tried)) == TRIALS
    assert points(tried)[0] == REFERENCE
    assert len(machine.launcher.trained) == 2 * TRIALS


def test_a_database_that_goes_away_costs_nothing_and_once_it_is_back_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PATIENCE_SECONDS", 3)
    server = tmp_path / "server"
    url = postgres_server.start(server)
    machine = Machine(tmp_path / "out", url=url, heartbeat_seconds=3)
    with pytest.raises(SearchError, match=r"^the storage is gone \(.*\); the same command goes on once it is back$"):
        machine.go(once(machine, lambda: postgres_server.stop(server)))
    assert len(machine.launcher.trained) == 4
    with pytest.raises(ValueError, match="cannot be used"):
        machine.go()
    postgres_server.start_again(server)
    try:
        assert len(points(machine.go())) == TRIALS
    finally:
        postgres_server.stop(server)
    assert len(machine.launcher.trained) == 2 * TRIALS, "nothing is trained twice"


TABLES = ("study_user_attributes", "trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes")
TABLES += ("trial_system_attributes", "trial_heartbeats", "trials", "study_directions", "studies")


@pytest.mark.parametrize(
    "questions",
    [[f"delete from {table}" for table in TABLES], ["drop schema public cascade", "create schema public"]],
    ids=["rows", "tables"],
)
def test_what_is_deleted_under_a_search_is_one_line_and_it_begins_anew(
    questions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PATIENCE_SECONDS", 1)
    server = tmp_path / "server"
    url = postgres_server.start(server)
    machine = Machine(tmp_path / "out", PROBLEM, url=url, heartbeat_seconds=3)
    try:
        with pytest.raises(SearchError, match=r"the same command goes on") as caught:
            machine.go(once(machine, lambda: ask(url, *questions)))
        assert "\n" not in str(caught.value)
        tried = machine.go()
        assert points(tried)[0] == REFERENCE
        assert len(points(tried)) == TRIALS
        assert len(machine.launcher.trained) == 2 * TRIALS, "its runs are told"
    finally:
        postgres_server.stop(server)
