"""A study on a SLURM cluster, through submitit: array jobs, each of which is a local pool over its share of the runs.

All that is known stands in the study's folder, which every node has to see: `slurm/` holds the logs and which job has
which runs; `runs/<run id>/slurm-<job>.out` and `.err` lead from a run to its logs. So the command that waits may be
killed and given again: jobs that are still there are waited for, not submitted twice.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrow_files import open_file
from regrow_lab.config import RunConfig
from regrow_lab.launch.local import Local
from regrow_lab.launch.outcome import TRIES, More, Outcome, WorkerError, no_more, unfinished
from regrow_lab.launch.progress import Progress
from regrow_lab.launch.shards import deal
from regrow_lab.launch.slurm_job import Share, outcome_file
from regrow_lab.store import folders, whole_files

TIMEOUTS = 1000
"""How often a job is queued again that came to its time limit; each time it goes on from its checkpoints."""
WARNING_SECONDS = 90
"""Time between the warning that the time limit is near and the limit."""
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
ENDED |= {"PREEMPTED", "REVOKED"}
"""States that a job does not leave. One that SLURM queues again is PENDING, never PREEMPTED."""
OUT_OF_MEMORY = ("exceeded memory limit", "exceeded job memory limit", "oom_kill", "oom-kill")
"""What the log of a job says that had too little memory, in lower case; its state is OUT_OF_MEMORY or just FAILED."""
LOG_END = 20_000
"""Bytes of a log, from its end, in which that is looked for."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each job of a study asks SLURM for."""

    partition: str | None = None
    """Partition; by default the cluster's own."""
    jobs: int = 8
    """Tasks of the array job, among which the runs are dealt out."""
    cpus: int = 1
    """Cores of a job; on a CPU it trains one run on each."""
    gpus: int = 0
    """GPUs of a job."""
    memory_gb: float | None = None
    """Memory of a job in GiB; by default the cluster's own. A job that needed more gets twice as much."""
    minutes: int = 240
    """Time limit of a job. One that comes to it is queued again and goes on."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as account=vision or constraint=a100."""
    poll_seconds: float = 10.0
    """Time between two looks at the queue."""


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Array jobs on a SLURM cluster."""

    resources: Resources = field(default_factory=Resources)
    pool: Local = field(default_factory=lambda: Local(workers=1))
    """What each job does with its share of the runs."""

    def check(self) -> None:
        """See Launcher."""
        if shutil.which("sbatch") is None:
            raise ValueError(
                "there is no SLURM here (sbatch is not on the path): give the command on the cluster's login node, or "
                "leave out --launcher slurm"
            )
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise ValueError("SLURM needs submitit: pip install submitit") from None
        for name in ("jobs", "cpus", "minutes"):
            if getattr(self.resources, name) < 1:
                raise ValueError(f"slurm.{name} must be 1 or more, given {getattr(self.resources, name)}")
        if self.resources.memory_gb is not None and self.resources.memory_gb <= 0:
            raise ValueError(f"slurm.memory-gb must be above 0, given {self.resources.memory_gb:g}")
        self._sbatch_options()
        asked = _run("sinfo", "--noheader", "--format=%R")
        if asked.returncode:
            raise ValueError(f"SLURM does not answer ({_last_line(asked.stderr)}): see `sinfo`")
        partitions = sorted(set(asked.stdout.split()))
        if self.resources.partition not in (None, *partitions):
            raise ValueError(
                f"there is no partition {self.resources.partition!r} on this cluster: choose one of "
                f"{', '.join(partitions)}"
            )

    @property
    def at_a_time(self) -> int:
        """See Launcher."""
        return self.resources.jobs * self.pool.workers

    def launch(self, runs: Sequence[RunConfig], directory: Path, progress: Progress, more: More = no_more) -> Outcome:
        """See Launcher.

        A run whose job dies is submitted again in a job of its own, three times in all; with twice the memory where the
        job had too little.

        Raises:
            ValueError: see `check`.
            WorkerError: SLURM refuses the jobs; nothing is lost.
        """
        self.check()
        directory = directory.resolve()
        outcome = Outcome(before=len(runs) - len(unfinished(runs, directory)))
        watch = _Watch(self, directory, progress, outcome, runs, more)
        progress.begin(total=len(runs), finished=outcome.before)
        try:
            while watch.look():
                time.sleep(self.resources.poll_seconds)
        except KeyboardInterrupt:
            if watch.alive:
                jobs = " ".join(sorted({job.split("_")[0] for job in watch.alive}))
                progress.note(f"the jobs go on; the same command waits for them, and `scancel {jobs}` ends them")
            raise
        finally:
            progress.end()
        return outcome

    def submit(self, shares: Sequence[Sequence[RunConfig]], directory: Path, memory_gb: float | None) -> dict[str, int]:
        """Submit an array job with a task for each share; returns the job's id -> the number of its share."""
        import submitit

        wanted = self.resources
        executor = submitit.SlurmExecutor(folder=directory / "slurm", max_num_timeout=TIMEOUTS)
        executor.update_parameters(
            job_name=f"regrow-{directory.name}",
            time=wanted.minutes,
            cpus_per_task=wanted.cpus,
            signal_delay_s=min(WARNING_SECONDS, 15 * wanted.minutes),
            additional_parameters={"requeue": True, **self._sbatch_options()},
            **({"partition": wanted.partition} if wanted.partition else {}),
            **({"mem": f"{round(memory_gb * 1024)}M"} if memory_gb else {}),
            **({"gpus_per_node": wanted.gpus} if wanted.gpus else {}),
        )
        try:
            jobs = executor.map_array(Share(directory, self.pool), shares)
        except submitit.core.utils.FailedJobError as error:
            said = [line.split("error: ", 1)[1] for line in str(error).splitlines() if "error: " in line]
            raise WorkerError(f"SLURM refuses the jobs: {'; '.join(said) or _last_line(str(error))}") from None
        return {str(job.job_id): number for number, job in enumerate(jobs)}

    def _sbatch_options(self) -> dict[str, str | bool]:
        options: dict[str, str | bool] = {}
        for option in self.resources.sbatch:
            name, equals, value = option.partition("=")
            if not name or name.startswith("-"):
                raise ValueError(
                    f"an option of sbatch is name=value or a name, such as account=vision, given {option!r}"
                )
            options[name] = value if equals else True
        return options


class _Watch:
    """Sees to it that every run that is not finished has a job."""

    def __init__(
        self,
        launcher: Slurm,
        directory: Path,
        progress: Progress,
        outcome: Outcome,
        runs: Sequence[RunConfig],
        more: More,
    ) -> None:
        self.launcher = launcher
        self.directory = directory
        self.progress = progress
        self.outcome = outcome
        self.left = {run.run_id: run for run in unfinished(runs, directory)}
        self.more = more
        self.asked = 0
        self.jobs = _recorded_jobs(directory)
        self.known_dead = set(self.jobs)  # of an earlier command: their deaths are not held against the runs
        self.alive: set[str] = set()
        self.deaths: Counter[str] = Counter()
        self.starved: Counter[str] = Counter()
        self.said: set[str] = set()

    def look(self) -> bool:
        """Take in what has happened and submit what has no job; whether runs are left."""
        states = self._queue() if self.left else {}
        self._take_in_results()
        if self.outcome.ended > self.asked:
            self.asked = self.outcome.ended
            self.left |= {run.run_id: run for run in self.more(self.outcome)}
        if not self.left or states is None:
            return bool(self.left)
        self.alive = {job for job in self.jobs if states.get(job, ("GONE", ""))[0] not in {"GONE", *ENDED}}
        self._say_why_jobs_wait(states)
        for job in self.jobs.keys() - self.alive - self.known_dead:
            self.known_dead.add(job)
            self._bury(job, states.get(job, ("GONE", ""))[0])
        held = {run for job in self.alive for run in self.jobs[job]}
        self._submit([run for name, run in self.left.items() if name not in held])
        return bool(self.left)

    def _take_in_results(self) -> None:
        for name, run in list(self.left.items()):
            folder = folders.run_folder(self.directory, run)
            if folders.is_finished(folder):
                del self.left[name]
                result = folders.read_result(folder)
                self.outcome.count(run, result)
                self.progress.run(None, run, result)

    def _bury(self, job: str, state: str) -> None:
        """See to the runs of a job that has ended before they were finished."""
        runs = [self.left[name] for name in self.jobs[job] if name in self.left]
        if not runs or state == "PREEMPTED":
            return
        starved = state == "OUT_OF_MEMORY" or _says_out_of_memory(self._log(job))
        state = "OUT_OF_MEMORY" if starved else state
        path = outcome_file(self.directory, job)
        failed = _table(path, "failed") if path.exists() and not starved else {}
        said = {"OUT_OF_MEMORY": "ran out of memory", "GONE": "is no longer known to SLURM", "COMPLETED": "ended"}.get(
            state, f"ended as {state}"
        )
        for run in runs:
            if run.run_id in failed:
                self._fail(run, str(failed[run.run_id]))
            elif state == "CANCELLED":
                self._fail(run, f"its job {job} was cancelled")
            else:
                self.deaths[run.run_id] += 1
                self.starved[run.run_id] += starved
                if self.deaths[run.run_id] == TRIES:
                    self._fail(run, f"its jobs died {TRIES} times, the last one, {job}, {said} (log: {self._log(job)})")
        again = [run for run in runs if run.run_id in self.left]
        if again:
            more = " with twice the memory" if starved and self.launcher.resources.memory_gb else ""
            self.progress.note(
                f"job {job} {said} with {len(again)} runs unfinished; they are submitted again{more} (log: "
                f"{self._log(job)})"
            )

    def _submit(self, runs: Sequence[RunConfig]) -> None:
        """Fresh runs in shares; those that have seen a job die in a job each, so that one cannot take others along."""
        fresh = [run for run in runs if not self.deaths[run.run_id]]
        groups = {(0, False): [share for share in deal(fresh, self.launcher.resources.jobs) if share]}
        for run in runs:
            if self.deaths[run.run_id]:
                groups.setdefault((self.starved[run.run_id], True), []).append([run])
        base = self.launcher.resources.memory_gb
        for (starved, _), shares in groups.items():
            if not shares:
                continue
            submitted = self.launcher.submit(shares, self.directory, base and base * 2**starved)
            jobs = {job: [run.run_id for run in shares[number]] for job, number in submitted.items()}
            array = next(iter(jobs)).split("_")[0]
            whole_files.write_json(self.directory / "slurm" / f"array-{array}.json", {"jobs": jobs})
            self.jobs |= jobs
            self.alive |= jobs.keys()
            self.progress.note(f"SLURM job {array}: {sum(map(len, shares))} runs in {len(shares)} tasks")
            for job, names in jobs.items():
                for name in names:
                    self._link_logs(name, job)

    def _link_logs(self, name: str, job: str) -> None:
        folder = self.directory / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        for ending in ("out", "err"):
            link = folder / f"slurm-{job}.{ending}"
            link.unlink(missing_ok=True)
            link.symlink_to(Path("../../slurm") / f"{job}_0_log.{ending}")

    def _log(self, job: str) -> Path:
        return self.directory / "slurm" / f"{job}_0_log.err"

    def _queue(self) -> dict[str, tuple[str, str]] | None:
        """Job -> state and reason of all that SLURM still knows; None where it does not answer."""
        asked = _run("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r")
        if asked.returncode:
            self._say(f"SLURM does not answer ({_last_line(asked.stderr)}): waiting for it")
            return None
        fields = [line.strip().split("|", 2) for line in asked.stdout.splitlines()]
        return {job: (state, reason) for job, state, reason in fields}

    def _say_why_jobs_wait(self, states: Mapping[str, tuple[str, str]]) -> None:
        waiting = {states[job][1] for job in self.alive if states[job][0] == "PENDING"}
        for reason in sorted(waiting - {"None", "Priority", "Resources", "BeginTime"}):
            self._say(f"jobs wait in SLURM's queue: {reason}")

    def _say(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            self.progress.note(line)

    def _fail(self, run: RunConfig, why: str) -> None:
        del self.left[run.run_id]
        self.outcome.fail(run, why, self.progress)


def _recorded_jobs(directory: Path) -> dict[str, list[str]]:
    """Job -> its runs, of all that were ever submitted for this folder."""
    files = sorted((directory / "slurm").glob("array-*.json"))
    return {job: list(map(str, runs)) for file in files for job, runs in _table(file, "jobs").items()}


def _table(path: Path, name: str) -> dict[str, Any]:
    """What such a file says of each job or run. Raises ValueError if it says nothing of the kind."""
    found = whole_files.read_json(path).get(name)
    if not isinstance(found, dict) or not all(
        isinstance(each, (str, list)) and "/" not in key for key, each in found.items()
    ):
        raise ValueError(
            f"{path} is damaged: it has no {name} by their names; delete it, and what it said is done again"
        )
    return found


def _says_out_of_memory(log: Path) -> bool:
    if not log.exists():
        return False
    with open_file(log) as file:
        file.seek(max(0, log.stat().st_size - LOG_END))
        end = file.read().decode(errors="replace").lower()
    return any(words in end for words in OUT_OF_MEMORY)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
