"""A study on a real SLURM cluster of one node, brought up for these tests: `make test-slurm`.

Jobs are preempted, the node is drained, a job runs out of memory, the command that waits is killed; and what comes out
is what the local pool makes of the same runs.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import slurm_cluster as cluster

from regrow_lab.commands.cli import main
from regrow_lab.config import RunConfig
from regrow_lab.launch import Local, Slurm, WorkerError, shard
from regrow_lab.launch.outcome import unfinished
from regrow_lab.launch.progress import Progress
from regrow_lab.launch.shards import deal
from regrow_lab.launch.slurm import Resources
from regrow_lab.store import folders
from regrow_lab.studies import study_runs

pytestmark = pytest.mark.slurm
SAME = ("status", "test_accuracy", "test_loss", "densities", "steps", "weight_steps", "updates", "train_ratio")
"""What a run's result has besides times and dates."""
LARGE = RunConfig(data="digits-images", model="wrn-16-4", epochs=1, batch_size=1024, dropout=0.0)
"""A run of some 0.8 GiB, where the others need 0.4."""


LONG = RunConfig(method="rigl", sparsity=0.9, epochs=400)
"""A run that is under way for long enough to be preempted in its middle."""


class Said(Progress):
    """Keeps what the launcher says."""

    def __init__(self) -> None:
        self.finished: list[str] = []
        self.notes: list[str] = []

    def begin(self, total: int, finished: int) -> None: ...

    def epoch(self, worker: int | None, run: RunConfig, row: Mapping[str, Any]) -> None: ...

    def run(self, worker: int | None, run: RunConfig, result: Mapping[str, Any]) -> None:
        self.finished.append(run.run_id)

    def note(self, line: str) -> None:
        print(line)
        self.notes.append(line)

    def end(self) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cluster")
    os.environ["SLURM_CONF"] = str(cluster.start(folder))
    yield folder
    subprocess.run(["scancel", "--me"], check=False)
    cluster.stop(folder)
    del os.environ["SLURM_CONF"]


def on_slurm(**resources: Any) -> Slurm:
    wanted = {"jobs": 4, "memory_gb": 0.6, "minutes": 30, "poll_seconds": 0.5} | resources
    return Slurm(resources=Resources(**wanted), pool=Local(workers=1))


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.1)


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def states(*options: str) -> list[str]:
    return ask("squeue", "--me", "--noheader", "--array", "--format=%T", *options).split()


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    return thread, found


def results(directory: Path) -> dict[str, dict[str, Any]]:
    runs = folders.read_runs(directory)
    return {run.folder.name: {name: (run.result or {}).get(name) for name in SAME} for run in runs}


def test_a_study_with_every_mishap_is_the_same_as_locally_run_for_run(tmp_path: Path) -> None:
    small = study_runs("digits", 1)[::3]
    runs = [*small[:3], LONG, *small[3:], LARGE]
    assert len(runs) >= 20
    assert LONG in deal(runs, 4)[3], "it is in the last job, so the node is drained before it begins"
    here, there, said = tmp_path / "local", tmp_path / "slurm", Said()
    thread, outcomes = in_background(lambda: on_slurm().launch(runs, there, said))

    # The only node is drained: jobs in hand go on, the others wait until it is resumed.
    wait_until(lambda: len(said.finished) >= 1, 120)
    node = ask("sinfo", "--noheader", "--format=%N").split()[0]
    ask("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    in_hand = len(said.finished)
    wait_until(lambda: "RUNNING" not in states(), 120)
    assert "PENDING" in states()
    wait_until(lambda: len(said.finished) > in_hand)
    waiting = len(said.finished)
    assert waiting < len(runs) / 2 + 2
    time.sleep(3)
    assert set(states()) == {"PENDING"}
    assert len(said.finished) == waiting
    ask("scontrol", "update", f"nodename={node}", "state=resume")

    # A job of the partition above takes the whole node: jobs in hand write their checkpoints and are queued again.
    wait_until(lambda: rows(there, LONG) >= 60, 120)
    ask(
        "sbatch",
        "--partition=high",
        f"--cpus-per-task={os.cpu_count()}",
        "--wrap=sleep 20",
        f"--output={tmp_path}/high",
    )
    wait_until(lambda: any("recedence" in line or "SIGTERM" in line for line in logs(there)))
    wait_until(lambda: states("--partition=high") == ["RUNNING"])
    assert set(states("--partition=low")) == {"PENDING"}
    assert restarts() >= 1, "the preempted jobs are queued again by SLURM itself"
    folder = folders.run_folder(there, LONG)
    assert (folder / "checkpoint.pt").exists(), "the preempted jobs leave their checkpoints"
    # A run that goes on from its checkpoint writes all epochs up to it at once; one that began anew would write few.
    before = rows(there, LONG)
    (folder / "metrics.jsonl").unlink()
    wait_until(lambda: rows(there, LONG) > 0, 240)
    assert rows(there, LONG) >= before >= 60

    thread.join()
    [outcome] = outcomes
    assert outcome.failed == {}
    assert outcome.finished == len(runs) == len(set(said.finished)) == len(said.finished)
    assert any("ran out of memory" in note and "twice the memory" in note for note in said.notes)
    for run in runs:
        assert list(folders.run_folder(there, run).glob("slurm-*.err")), "a run's folder leads to its logs"
        assert all(link.resolve().is_file() for link in folders.run_folder(there, run).glob("slurm-*_0.err"))
    Local(workers=2).launch(runs, here, Said())
    assert results(there) == results(here)
    for name in results(here):
        assert metrics(there, name) == metrics(here, name)


def rows(directory: Path, run: RunConfig) -> int:
    """Epochs that stand in the run's metrics."""
    path = folders.run_folder(directory, run) / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def restarts() -> int:
    """How often SLURM has queued jobs again."""
    shown = ask("scontrol", "show", "job", "--oneliner")
    return sum(int(number) for number in re.findall(r"Restarts=(\d+)", shown))


def metrics(directory: Path, name: str) -> str:
    return (directory / "runs" / name / "metrics.jsonl").read_text()


def logs(directory: Path) -> list[str]:
    return [line for log in directory.glob("slurm/*_log.*") for line in log.read_text().splitlines()]


def test_the_command_may_be_killed_and_given_again_while_its_jobs_go_on(tmp_path: Path) -> None:
    options = [
        "--seeds",
        "1",
        "--shard",
        "1/11",
        "--launcher",
        "slurm",
        "--slurm.jobs",
        "2",
        "--slurm.memory-gb",
        "0.6",
    ]
    arguments = ["study", "digits", "--out", str(tmp_path), *options]
    command = subprocess.Popen([sys.executable, "-m", "regrow_lab", *arguments])
    wait_until(lambda: list(tmp_path.glob("slurm/array-*.json")))
    wait_until(lambda: states("--states=all"))
    command.send_signal(signal.SIGKILL)
    command.wait()
    said = Said()
    outcome = on_slurm(jobs=2).launch(shard(study_runs("digits", 1), "1/11"), tmp_path, said)
    assert outcome.before + outcome.finished == 7
    assert not any(note.startswith("SLURM job") for note in said.notes), "nothing is submitted twice"
    assert len(list(tmp_path.glob("slurm/array-*.json"))) == 1


def test_a_cancelled_job_is_not_submitted_again(tmp_path: Path) -> None:
    run, said = RunConfig(epochs=100_000), Said()
    thread, outcomes = in_background(lambda: on_slurm().launch([run], tmp_path, said))
    wait_until(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")))
    ask("scancel", "--me")
    thread.join(60)
    [outcome] = outcomes
    assert "was cancelled" in outcome.failed[run.run_id]
    assert list(tmp_path.glob("runs/*/checkpoint.pt")), "scancel too leaves the checkpoint"
    assert len(unfinished([run], tmp_path)) == 1


def test_a_run_that_cannot_be_trained_is_said_once(tmp_path: Path) -> None:
    wrong, said = RunConfig(model="lenet"), Said()
    outcome = on_slurm(jobs=1).launch([wrong, RunConfig(epochs=1)], tmp_path, said)
    assert outcome.finished == 1
    assert outcome.failed[wrong.run_id].startswith("unknown model 'lenet'")
    assert len([note for note in said.notes if note.startswith("SLURM job")]) == 1


def test_bad_wishes_are_one_line_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    study = ["study", "digits", "--seeds", "1", "--out", str(out), "--launcher", "slurm"]
    assert main([*study, "--slurm.partition", "gpu"]) == 2
    line = capsys.readouterr().err
    assert line == "regrow: there is no partition 'gpu' on this cluster: choose one of high, low\n"
    assert main([*study, "--slurm.sbatch", "--account=x"]) == 2
    assert not out.exists()
    with pytest.raises(WorkerError, match=r"^SLURM refuses the jobs: .*[Mm]emory"):
        on_slurm(memory_gb=1e6).launch([RunConfig()], tmp_path / "much", Said())


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--launcher", "slurm", "--slurm.jobs", "2", "--slurm.poll-seconds", "0.5", "--shard", "1/23"]
    assert main(["study", "digits", "--seeds", "1", "--out", str(tmp_path / "out"), *options]) == 0
    out = capsys.readouterr().out
    assert "shard 1/23 is done, 66 of the study's 69 runs are not" in out
    assert "3 runs: 0 finished before, 3 now" in out
