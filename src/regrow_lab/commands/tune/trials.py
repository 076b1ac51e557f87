"""One search in its storage: which trials it asks Optuna for, which runs they need, and what it tells of them.

Only what is public of Optuna is used.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from regrow_lab.config import RunConfig
from regrow_lab.launch.outcome import unfinished
from regrow_lab.launch.progress import SearchRow, counted
from regrow_lab.store import folders
from regrow_lab.studies.table4 import REFERENCE, Point, Problem

PROBLEM, SIGNED = "problem", "signed"
"""Attributes: of a study, what is searched; of a trial under way, its number, once it has a heartbeat."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
PRUNING_BEGINS = 5
"""Finished trials before any is given up."""
UNSIGNED_SECONDS = 60
"""How long a trial may be under way without its first heartbeat before it counts as dead."""


class SearchError(Exception):
    """The search cannot go on. The message says why and what to do; what was trained stands on the disk."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all searches of a command share."""

    name: str
    directory: Path
    trials: int = 15
    prune: bool = False
    seed: int = 0
    alone: bool = True
    """Whether no other command works on these searches: what was under way when this one began is dead then."""
    heartbeat_seconds: int = 60


@dataclass(eq=False)
class _InHand:
    """A trial under way: the runs of its point, and the scores of those that have been told."""

    trial: optuna.Trial
    place: int
    runs: list[RunConfig]
    scores: list[float] = field(default_factory=list)
    state: TrialState | None = None


class Search:
    """One search in its storage: asks for trials, says which runs they need, and tells what these gave."""

    def __init__(self, settings: Settings, problem: Problem, storage: RDBStorage) -> None:
        self.settings, self.problem, self.storage = settings, problem, storage
        self.name = f"{settings.name}-{problem.name}"
        self.space = {name: _distribution(*ends) for name, ends in problem.ranges.items()}
        self.first = {problem.runs(point)[0].run_id: point for point in problem.first(settings.directory)}
        self.in_hand: list[_InHand] = []
        self.unsigned: dict[int, float] = {}
        self.study = optuna.create_study(
            storage=storage, study_name=self.name, direction="maximize", load_if_exists=True
        )
        if PROBLEM not in self.study.user_attrs:
            self.study.set_user_attr(PROBLEM, problem.fingerprint())
        self.trials: list[FrozenTrial] = []
        self.read()

    def read(self) -> list[FrozenTrial]:
        """Every trial, as the storage has it now."""
        self.trials = self.study.get_trials(deepcopy=False)
        return self.trials

    def ask(self) -> bool:
        """Take a trial: one that the dead have left, one of the first points, or a new one; False if none is wanted."""
        self.check()
        self._bury()
        alive = self._alive()
        if not any(trial.state == TrialState.WAITING for trial in alive):
            taken = {self._key(trial) for trial in alive}
            missing = [point for key, point in self.first.items() if key not in taken]
            if missing:
                point, waiting = dict(missing[0]), TrialState.WAITING
                self.study.add_trial(optuna.create_trial(state=waiting, params=point, distributions=self.space))
            elif len(alive) >= self.settings.trials:
                return False
        trial = self.study.ask()
        if not self.settings.alone:
            self._beat(trial.number)
            trial.set_user_attr(SIGNED, trial.number)
            self.read()
        before = [other for other in self._alive() if other.number < trial.number]
        place, queued_twice = len(before), any(other.params == trial.params for other in before)
        # Several machines may queue one point at once, or take the last place.
        if queued_twice if trial.params else place >= self.settings.trials:
            self.study.tell(trial, state=TrialState.FAIL)
            return False
        # The randomness of each place is its own: a search that goes on suggests what an undisturbed one would have.
        seed = (self.settings.seed * 100_003 + place) % 2**32
        trial.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self.in_hand.append(_InHand(trial, place, self.problem.runs(self._suggest(trial))))
        return True

    def wanted(self) -> list[RunConfig]:
        """The runs that the trials in hand need now: the next one where a trial may be given up, else all."""
        found: list[RunConfig] = []
        for mine in self.in_hand:
            left = unfinished(mine.runs[len(mine.scores) :], self.settings.directory)
            found += left[:1] if self._may_be_pruned(mine) else left
        return found

    def tell(self) -> Iterator[str]:
        """Take in the runs that have finished; gives a line for each trial that is done with or given up."""
        for mine in list(self.in_hand):
            try:
                while mine.state is None and folders.is_finished(self._next_folder(mine)):
                    self._take_in(mine)
            except UpdateFinishedTrialError:  # it was taken for dead, and another has its point
                self.in_hand.remove(mine)
                continue
            if mine.state is not None:
                mean, pruned = statistics.fmean(mine.scores), mine.state == TrialState.PRUNED
                self.study.tell(mine.trial, None if pruned else mean, mine.state, skip_if_finished=True)
                self.in_hand.remove(mine)
                self.read()
                words = f"{self.problem.title:<19}  trial {mine.place + 1:2}/{self.settings.trials}"
                given_up = f"given up after {counted(len(mine.scores), 'seed')} at " if pruned else ""
                yield f"{words}  {self.problem.in_words(mine.runs[0]):<21}  {given_up}{mean:.2f} %"

    def is_done(self) -> bool:
        """Whether enough trials are finished, the first points among them."""
        done = [self._key(trial) for trial in self.read() if trial.state in FINISHED]
        return len(done) >= self.settings.trials and self.first.keys() <= set(done)

    def gone(self) -> list[RunConfig]:
        """Runs of finished trials that the folder has no more. Of a search on many machines each folder has a part."""
        done = [trial for trial in self.trials if self.settings.alone and trial.state in FINISHED]
        runs = [run for trial in done for run in self.problem.runs(trial.params)[: len(trial.intermediate_values)]]
        return unfinished(runs, self.settings.directory)

    def row(self) -> SearchRow:
        """How far the search is."""
        done = [trial for trial in self.trials if trial.state in FINISHED]
        wanted = max(self.settings.trials, len(self.first))
        whole = [trial for trial in done if trial.state == TrialState.COMPLETE]
        best = max(whole, key=lambda trial: trial.values[0], default=None)
        return SearchRow(
            name=self.problem.title,
            trials=f"{len(done)}/{wanted}",
            best=f"{best.values[0]:.2f} %" if best else "",
            point=self.problem.in_words(self.problem.runs(best.params)[0]) if best else "",
            finished=len(done) * self.problem.seeds,
            total=wanted * self.problem.seeds,
            in_hand=tuple(run.run_id for mine in self.in_hand for run in mine.runs),
        )

    def beat(self) -> None:
        """Give a sign of life for every trial in hand, where others look for one."""
        for mine in [] if self.settings.alone else list(self.in_hand):
            self._beat(mine.trial.number)

    def give_up(self) -> None:
        """Leave the trials in hand to whoever comes next."""
        for mine in self.in_hand:
            self._fail(self.read()[mine.trial.number])

    def check(self) -> None:
        """Raise SearchError if the search is in the storage no more, or not as this command began it."""
        try:
            same = self.study.user_attrs.get(PROBLEM) == self.problem.fingerprint()
        except KeyError:  # there is no such study
            same = False
        if not same:
            raise SearchError(
                f"the search {self.name!r} was deleted or changed in its storage; its runs are in "
                f"{self.settings.directory}, and the same command goes on with them, if need be under another --name"
            )

    def _alive(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state != TrialState.FAIL]

    def _key(self, trial: FrozenTrial) -> str | None:
        """What tells points apart; None where the trial has only a part of one."""
        return self.problem.runs(trial.params)[0].run_id if trial.params.keys() == self.space.keys() else None

    def _suggest(self, trial: optuna.Trial) -> Point:
        return {
            name: trial.suggest_int(name, low, int(high), step=int(step))
            if isinstance(low, int)
            else trial.suggest_float(name, low, high, step=step)
            for name, (low, high, step) in self.problem.ranges.items()
        }

    def _next_folder(self, mine: _InHand) -> Path:
        return folders.run_folder(self.settings.directory, mine.runs[len(mine.scores)])

    def _take_in(self, mine: _InHand) -> None:
        """The next run of a trial has finished: report it, and see whether it was the last."""
        result = folders.read_result(self._next_folder(mine))
        measured = result["validation_accuracy" if mine.runs[0].validation else "test_accuracy"]
        scores = [*mine.scores, float(measured or 0.0)]  # there is none of a run that diverged
        mean, step = statistics.fmean(scores), len(mine.scores)
        mine.trial.report(mean, step)
        if self._may_be_pruned(mine) and is_hopeless(mean, step, self.read()):
            mine.state = TrialState.PRUNED
        elif len(scores) == len(mine.runs):
            mine.state = TrialState.COMPLETE
        mine.scores = scores

    def _may_be_pruned(self, mine: _InHand) -> bool:
        """Before its last seed; never the reference, which the others are held to."""
        is_reference = not self.problem.grid and mine.runs == self.problem.runs(REFERENCE)
        return self.settings.prune and not is_reference and len(mine.scores) + 1 < len(mine.runs)

    def _bury(self) -> None:
        """Have the trials queued anew whose process has died."""
        if not self.settings.alone:
            self.beat()  # ours are alive, however long this machine has slept
            optuna.storages.fail_stale_trials(self.study)
        mine = {each.trial.number for each in self.in_hand}
        others = [trial for trial in self.read() if trial.state == TrialState.RUNNING and trial.number not in mine]
        for trial in others:
            since = self.unsigned.setdefault(trial.number, time.monotonic())
            unsigned = trial.user_attrs.get(SIGNED) != trial.number  # then no heartbeat tells when it dies
            if self.settings.alone or (unsigned and time.monotonic() - since > UNSIGNED_SECONDS):
                self._fail(trial)
        if others:
            self.read()

    def _fail(self, trial: FrozenTrial) -> None:
        try:
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):  # it is finished by now, or others were faster
            return
        if self._key(trial) is not None:
            RetryHeartbeatStaleTrialCallback()(self.study, trial)

    def _beat(self, number: int) -> None:
        study = self.storage.get_study_id_from_name(self.name)
        self.storage.record_heartbeat(self.storage.get_trial_id_from_study_id_trial_number(study, number))


def _distribution(low: float, high: float, step: float) -> BaseDistribution:
    if isinstance(low, int):
        return IntDistribution(low, int(high), step=int(step))
    return FloatDistribution(low, high, step=step)


def is_hopeless(mean: float, step: int, trials: Sequence[FrozenTrial]) -> bool:
    """Whether a mean after `step` + 1 seeds is among the worst quarter of those that the finished trials had by then.

    Optuna's own pruner would take the best mean that the trial has had so far, which a lucky first seed decides.
    """
    whole = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    means = [trial.intermediate_values[step] for trial in whole if step in trial.intermediate_values]
    return len(means) >= PRUNING_BEGINS and mean < statistics.quantiles(means, n=4, method="inclusive")[0]
