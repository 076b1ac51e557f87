"""One run on several processes, data-parallel: torchrun starts `regrow train` on each of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regrow_files import open_file
from regrow_lab.config import RunConfig
from regrow_lab.launch.outcome import CLAIMED_SECONDS, TRIES, More, Outcome, no_more, unfinished
from regrow_lab.launch.progress import Progress
from regrow_lab.store import folders
from regrow_lab.store.command_lines import words_of

STOP_SECONDS = 90
"""Time that torchrun has to end; it gives its processes 30 s to write their checkpoints, then kills them."""


@dataclass(frozen=True, kw_only=True)
class Torchrun:
    """The runs one after another, each on all processes."""

    processes: int = 2
    """Processes of a run; on GPUs one for each."""
    device: str = "cpu"
    """cpu, or cuda: each process takes a GPU of its own."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints of a run."""

    def check(self) -> None:
        """See Launcher."""
        if self.processes < 1:
            raise ValueError(f"a data-parallel run needs 1 process or more, given {self.processes}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"a data-parallel run is on cpu or cuda, given device {self.device!r}")
        if self.device == "cuda":
            import torch

            if torch.cuda.device_count() < self.processes:
                raise ValueError(f"{self.processes} processes need as many GPUs, here are {torch.cuda.device_count()}")

    @property
    def at_a_time(self) -> int:
        """See Launcher."""
        return 1

    def launch(self, runs: Sequence[RunConfig], directory: Path, progress: Progress, more: More = no_more) -> Outcome:
        """See Launcher. A run whose processes die is started again from its checkpoint, three times in all.

        Runs that another process has in hand are waited for, and taken over should that process die. A run that cannot
        be trained, such as one of an unknown model, is not started.
        """
        self.check()
        pending = deque(unfinished(runs, directory))
        outcome = Outcome(before=len(runs) - len(pending))
        deaths: Counter[str] = Counter()
        waited_for: set[str] = set()
        progress.begin(total=len(runs), finished=outcome.before)
        try:
            while pending:
                run = pending.popleft()
                claimed = _claimed(run, directory)
                if claimed is not None:
                    pending.append(run)
                    if run.run_id not in waited_for:
                        waited_for.add(run.run_id)
                        progress.note(f"{claimed}: waiting for it")
                    time.sleep(CLAIMED_SECONDS)
                elif self._train(run, directory, progress, outcome, deaths):
                    pending.extend(more(outcome))
                else:
                    pending.appendleft(run)
        finally:
            progress.end()
        return outcome

    def _train(
        self, run: RunConfig, directory: Path, progress: Progress, outcome: Outcome, deaths: Counter[str]
    ) -> bool:
        """Start the processes of a run once; whether that is the last of it, finished or failed."""
        wrong = _wrong_with(run)
        if wrong is not None:
            return _fail(run, wrong, progress, outcome)
        folder = folders.run_folder(directory, run)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "torchrun.log"
        code = 0 if folders.is_finished(folder) else _run(self.command(run, directory), log)
        if folders.is_finished(folder):
            result = folders.read_result(folder)
            outcome.count(run, result)
            progress.run(None, run, result)
            return True
        if _claimed(run, directory) is not None:  # another was faster: nobody died
            return False
        deaths[run.run_id] += 1
        if deaths[run.run_id] == TRIES:
            why = f"its processes ended {TRIES} times (exit code {code}, see {log})"
            return _fail(run, why, progress, outcome)
        progress.note(f"{run.run_id}: its processes ended (exit code {code}, see {log}); they are started again")
        return False

    def command(self, run: RunConfig, directory: Path) -> list[str]:
        """What is started for a run; it ends with whoever holds its standard input."""
        start = [sys.executable, "-m", "regrow_lab.launch.agent", "--standalone", f"--nproc-per-node={self.processes}"]
        options = ["--out", str(directory), "--device", self.device]
        options += ["--checkpoint-seconds", str(self.checkpoint_seconds)]
        return [*start, "-m", "regrow_lab", "train", *words_of(run), *options]


def _run(command: Sequence[str], log: Path) -> int:
    """The exit code of torchrun. Where this is interrupted, its processes write their checkpoints and end."""
    with open_file(log, "ab") as file:
        # In a session of its own, so that Ctrl-C asks the processes to stop once, not twice, which would be at once.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    assert process.stdin is not None
    try:
        return process.wait()
    finally:
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _claimed(run: RunConfig, directory: Path) -> str | None:
    """Who has the run in hand, or one that it starts from; None where nobody has."""
    each: RunConfig | None = run
    while each is not None:
        for home in (directory, directory / "again"):
            folder = folders.run_folder(home, each)
            if folder.exists() and not folders.is_finished(folder):
                try:
                    with folders.claim(folder):
                        pass
                except folders.ClaimedError as claimed:
                    return str(claimed)
        each = each.prerequisite
    return None


def _fail(run: RunConfig, why: str, progress: Progress, outcome: Outcome) -> bool:
    outcome.fail(run, why, progress)
    return True


def _wrong_with(run: RunConfig) -> str | None:
    """Why this run cannot be begun. Its processes would each say it, amid torchrun's lines, and be started again."""
    import torch

    from regrow_lab.run.training import Training

    if run.prerequisite:  # it begins with another run, which says what is wrong with both
        return None
    try:
        Training(run, torch.device("cpu"))
    except ValueError as error:
        return str(error)
    except Exception as error:  # a net, its data or torch may raise anything, and the other runs go on
        return f"{type(error).__name__}: {error}"
    return None
