import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from regrow_lab.config import RunConfig
from regrow_lab.launch import Local, Outcome, Slurm, WorkerError
from regrow_lab.launch import local as launching
from regrow_lab.launch.progress import LiveProgress, PlainProgress, progress_for
from regrow_lab.launch.slurm import _Watch
from regrow_lab.run.resumable import train
from regrow_lab.store import folders, whole_files

RUNS = [RunConfig(method="rigl", sparsity=0.5, epochs=1, seed=seed) for seed in range(5)]

HOLD = """
import sys, time
from pathlib import Path
from regrow_lab.store import folders
with folders.claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


class Recorder:
    """Keeps what it is told; `on_epoch` may act on it."""

    def __init__(self) -> None:
        self.workers: set[int | None] = set()
        self.finished: list[str] = []
        self.notes: list[str] = []

    def begin(self, total: int, finished: int) -> None:
        self.began = (total, finished)

    def epoch(self, worker: int | None, run: RunConfig, row: Mapping[str, Any]) -> None:
        self.on_epoch(worker, run)

    def on_epoch(self, worker: int | None, run: RunConfig) -> None:
        pass

    def run(self, worker: int | None, run: RunConfig, result: Mapping[str, Any]) -> None:
        self.workers.add(worker)
        self.finished.append(run.run_id)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def end(self) -> None:
        self.ended = True


def ids(runs: list[RunConfig]) -> list[str]:
    return [run.run_id for run in runs]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_many_runs_in_few_processes_and_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(RUNS[3], tmp_path / "alone", keep_weights=False)
    before = train(RUNS[0], tmp_path)
    progress = Recorder()
    ended: list[int] = []

    def more(outcome: Outcome) -> list[RunConfig]:
        ended.append(outcome.ended)
        return RUNS[4:] if len(ended) == 1 else []

    outcome = Local(workers=2).launch(RUNS[:4], tmp_path, progress, more)
    assert ended[-1] == 4
    assert (outcome.before, outcome.finished, outcome.diverged, outcome.failed) == (1, 4, [], {})
    assert (progress.began, progress.ended, progress.notes) == ((4, 1), True, [])
    assert sorted(progress.finished) == sorted(ids(RUNS[1:]))
    assert 1 <= len(progress.workers) <= 2
    assert os.getpid() not in progress.workers
    results = {run.config["seed"]: run.result for run in folders.read_runs(tmp_path)}
    assert results[0] == before
    assert results[3]["test_accuracy"] == train(RUNS[3], tmp_path / "alone")["test_accuracy"]
    assert "1 thread" in results[3]["machine"]
    assert not any(is_alive(worker) for worker in progress.workers if worker)

    monkeypatch.setattr(launching, "_start", lambda *_: pytest.fail("a worker is started for nothing"))
    assert Local(workers=2).launch(RUNS, tmp_path, Recorder()).before == 5


def test_runs_that_are_asked_for_later_get_jobs_of_slurm_too(tmp_path: Path) -> None:
    submitted: list[list[str]] = []

    class Watch(_Watch):
        def _queue(self) -> dict[str, tuple[str, str]]:
            return {}

        def _submit(self, runs: Sequence[RunConfig]) -> None:
            submitted.append([run.run_id for run in runs])
            for run in runs:
                folders.run_folder(tmp_path, run).mkdir(parents=True)
                result = {"status": "finished", "test_accuracy": 90.0, "diverged_at": None}
                result |= {"train_ratio": 1.0, "seconds": 1.0}
                whole_files.write_json(folders.run_folder(tmp_path, run) / "result.json", result)

    outcome, left = Outcome(), [RUNS[2:3], RUNS[1:2]]
    watch = Watch(Slurm(), tmp_path, Recorder(), outcome, RUNS[:1], lambda outcome: left.pop() if left else [])
    while watch.look():
        pass
    assert submitted == [[run.run_id] for run in RUNS[:3]]
    assert outcome.finished == 3


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("regrow_lab.run.machine.device_named", torch.device)


@pytest.mark.usefixtures("three_gpus")
def test_every_gpu_gets_as_many_workers_as_are_asked_for() -> None:
    assert Local(workers=2, device="cuda").devices() == ["cuda:0", "cuda:1", "cuda:2"] * 2
    assert Local(workers=2, device="cuda:1").devices() == ["cuda:1"] * 2
    assert Local(workers=2).devices() == ["cpu"] * 2


@pytest.mark.usefixtures("three_gpus")
def test_runs_are_handed_out_to_every_gpu_and_no_worker_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, asked = launching._start, []

    def on_the_cpu(device: str, *arguments: Any) -> Any:
        asked.append(device)
        worker = start("cpu", *arguments)
        worker.device = device
        return worker

    monkeypatch.setattr(launching, "_start", on_the_cpu)
    assert Local(workers=2, device="cuda").launch(RUNS[:4], tmp_path, Recorder()).finished == 4
    assert set(asked) == {"cuda:0", "cuda:1", "cuda:2"}
    assert len(asked) == 4


def test_a_run_whose_worker_dies_is_started_again_and_at_last_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "TRIES", 2)
    progress = Recorder()
    endless, slow = RunConfig(epochs=100_000), RunConfig(epochs=40)
    deaths = {endless.run_id: 2, slow.run_id: 1}

    def kill(worker: int | None, run: RunConfig) -> None:
        if worker and deaths[run.run_id]:
            deaths[run.run_id] -= 1
            os.kill(worker, signal.SIGKILL)

    progress.on_epoch = kill
    outcome = Local(workers=1).launch([slow, endless], tmp_path, progress)
    assert set(deaths.values()) == {0}
    assert progress.finished == [slow.run_id]
    assert outcome.failed == {endless.run_id: "its worker died (exit code -9) 2 times"}
    again = [f"{run.run_id}: its worker died (exit code -9); the run is started again" for run in (slow, endless)]
    assert progress.notes == [*again, f"{endless.run_id} failed: {outcome.failed[endless.run_id]}"]


def test_a_run_that_cannot_be_trained_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Recorder()
    wrong, unwritable, broken = RunConfig(model="lenet"), RunConfig(epochs=1), RunConfig(epochs=2)
    (folders.run_folder(tmp_path, unwritable) / "metrics.jsonl").mkdir(parents=True)
    folder = folders.run_folder(tmp_path, broken)
    (folder / "config.json").mkdir(parents=True)
    outcome = Local(workers=1).launch([wrong, unwritable, broken, RUNS[0]], tmp_path, progress)
    assert progress.finished == [RUNS[0].run_id]
    assert outcome.failed[wrong.run_id].startswith("unknown model 'lenet'")
    assert outcome.failed[unwritable.run_id].endswith("then the same command goes on from it")
    assert "config.json is a folder, a file was expected" in outcome.failed[broken.run_id]
    assert sorted(progress.notes) == sorted(f"{name} failed: {why}" for name, why in outcome.failed.items())


def test_what_nobody_expected_of_a_run_is_a_line_and_its_traceback_a_file(tmp_path: Path) -> None:
    assert launching._in_words(RuntimeError("out of luck"), tmp_path).startswith("RuntimeError: out of luck")
    assert "RuntimeError: out of luck" in (tmp_path / "error.txt").read_text()


def test_what_breaks_a_run_before_it_has_a_folder_is_said_and_kept(tmp_path: Path) -> None:
    said = launching._in_words(IndexError("no such row"), tmp_path / "runs" / "one")
    assert said == f"IndexError: no such row (see {tmp_path / 'runs' / 'one' / 'error.txt'})"
    assert (tmp_path / "runs" / "one" / "error.txt").read_text() == "IndexError: no such row\n"
    (tmp_path / "file").touch()
    assert launching._in_words(IndexError("no such row"), tmp_path / "file" / "one") == "IndexError: no such row"


def test_a_run_of_another_process_is_waited_for_and_taken_over(tmp_path: Path) -> None:
    folder = folders.run_folder(tmp_path, RUNS[0])
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    progress = Recorder()
    progress.note = lambda line: (progress.notes.append(line), holder.kill())
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        outcome = Local(workers=1).launch(RUNS[:2], tmp_path, progress)
        holder.wait()
    assert outcome.finished == 2
    [note] = progress.notes
    assert note.startswith(f"{RUNS[0].run_id} is under way in process {holder.pid} on ")
    assert note.endswith("waiting for it")


def test_two_studies_in_one_folder_share_the_work(tmp_path: Path) -> None:
    progress = [Recorder(), Recorder()]
    outcomes: list[Outcome] = []
    threads = [
        threading.Thread(
            target=lambda mine: outcomes.append(Local(workers=1).launch(RUNS, tmp_path, mine)), args=(mine,)
        )
        for mine in progress
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(outcome.before + outcome.finished == 5 for outcome in outcomes)
    for run in folders.read_runs(tmp_path):
        assert [row["epoch"] for row in run.metrics] == [1]
        assert run.result is not None


def test_workers_that_cannot_start_end_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "path"
    (broken / "torch").mkdir(parents=True)
    (broken / "torch" / "__init__.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setattr(sys, "path", [str(broken), *sys.path])  # the workers search where their parent does
    progress = Recorder()
    with pytest.raises(WorkerError, match=r"3 workers died as they started \(exit code 1, see above\)"):
        Local(workers=1).launch(RUNS, tmp_path, progress)
    assert progress.ended
    assert progress.finished == progress.notes == []
    assert not (tmp_path / "runs").exists()


def test_fewer_workers_than_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be 1 or more, given 0"):
        Local(workers=0).launch(RUNS, tmp_path, Recorder())


def test_plain_progress_is_a_line_a_run() -> None:
    text = io.StringIO()
    progress = progress_for(Console(file=text, width=40))
    assert isinstance(progress, PlainProgress)
    progress.begin(total=207, finished=2)
    progress.epoch(1, RUNS[0], {"epoch": 1, "train_loss": 2.0})
    progress.run(1, RUNS[0], {"status": "finished", "test_accuracy": 96.84, "seconds": 0.51})
    progress.run(1, RUNS[1], {"status": "diverged", "diverged_at": 17})
    progress.note("a [note] of more than the forty characters that the console is wide")
    progress.end()
    assert text.getvalue().splitlines() == [
        "2 of 207 runs are finished already",
        f"[  3/207] {RUNS[0].run_id:<42}  96.8 %  0.5 s",
        f"[  4/207] {RUNS[1].run_id:<42} diverged at step 17",
        "a [note] of more than the forty characters that the console is wide",
    ]


def test_live_progress_shows_the_study_and_the_runs_in_hand() -> None:
    text = io.StringIO()
    progress = progress_for(Console(file=text, width=160, force_terminal=True))
    assert isinstance(progress, LiveProgress)
    progress.begin(total=207, finished=2)
    progress.epoch(1, RUNS[0], {"epoch": 1, "train_loss": 1.25})
    progress.epoch(2, RUNS[1], {"epoch": 1, "train_loss": None})
    progress.bars.refresh()
    shown = text.getvalue()
    assert "2/207" in shown
    assert RUNS[0].run_id in shown
    assert RUNS[1].run_id in shown
    assert "loss 1.250" in shown
    progress.run(2, RUNS[1], {"status": "diverged", "diverged_at": 17})
    progress.end()
    assert f"{RUNS[1].run_id} diverged at step 17" in text.getvalue()
