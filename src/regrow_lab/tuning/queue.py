"""Which point comes next: read off the trials that there are, so that no death at any moment can lose one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice
from statistics import quantiles
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from regrow_lab.tuning.problem import Problem

PLACE = "place"
"""Attribute of a trial: the how-manieth of the search it is, from 0. One that takes over has the dead one's."""
PRUNING_BEGINS = 5
"""Finished trials before any is given up."""
FIXED = "fixed_params"
"""Where Optuna keeps the point of a trial that was queued."""


def is_finished(problem: Problem, trial: FrozenTrial) -> bool:
    """Whether a trial needs no more: all its seeds are trained, or it was pruned and may be."""
    pruned = trial.state == TrialState.PRUNED
    return trial.state == TrialState.COMPLETE or (pruned and problem.may_be_pruned(point_of(trial)))


def living(problem: Problem, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that are finished, under way or queued; the others were given up by a worker that died or was stopped."""
    return [trial for trial in trials if not trial.state.is_finished() or is_finished(problem, trial)]


def point_of(trial: FrozenTrial) -> dict[str, Any]:
    """The point of a trial; parts of it, or nothing, where its worker has not got as far."""
    return {**trial.system_attrs.get(FIXED, {}), **trial.params}


def owed(problem: Problem, trials: Sequence[FrozenTrial], wanted: int) -> list[dict[str, Any]]:
    """Points to be queued: those to be tried first in any case, and those that were begun and that nobody finished.

    Of the latter no more than make `wanted` trials together with the living ones.
    """
    taken = [point_of(trial) for trial in living(problem, trials)]
    first = [point for point in problem.first if point not in taken]
    begun: list[dict[str, Any]] = []
    for trial in trials:
        point = point_of(trial)
        whole = trial.state == TrialState.FAIL and point.keys() == problem.first[0].keys()
        if whole and point not in taken + first + begun:
            begun.append(point)
    return first + begun[: max(0, wanted - len(taken) - len(first))]


def is_done(problem: Problem, trials: Sequence[FrozenTrial], wanted: int) -> bool:
    """Whether there are enough finished trials, those of the first points among them."""
    found = [point_of(trial) for trial in trials if is_finished(problem, trial)]
    return len(found) >= wanted and all(point in found for point in problem.first)


def place_of(problem: Problem, number: int, trials: Sequence[FrozenTrial]) -> int:
    """The first free place for trial `number`, behind those that began before it and have not taken theirs yet."""
    others = [trial for trial in living(problem, trials) if trial.number != number]
    taken = {trial.user_attrs[PLACE] for trial in others if PLACE in trial.user_attrs}
    before = sum(
        trial.number < number and PLACE not in trial.user_attrs and trial.state != TrialState.WAITING
        for trial in others
    )
    free = (place for place in count() if place not in taken)
    return next(islice(free, before, None))


def is_surplus(problem: Problem, number: int, place: int, trials: Sequence[FrozenTrial], wanted: int) -> bool:
    """Whether trial `number` need not be: several workers queued its point at once, or took the last place."""
    [trial] = [trial for trial in trials if trial.number == number]
    point = point_of(trial)
    if point and any(other.number < number and point_of(other) == point for other in living(problem, trials)):
        return True
    return place >= wanted and point not in problem.first


def is_hopeless(mean: float, step: int, trials: Sequence[FrozenTrial]) -> bool:
    """Whether a mean after `step` + 1 seeds is among the worst quarter of those that the finished trials had by then.

    Optuna's own pruner would take the best mean that the trial has had so far, which a lucky first seed decides.
    """
    means = [
        trial.intermediate_values[step]
        for trial in trials
        if trial.state == TrialState.COMPLETE and step in trial.intermediate_values
    ]
    return len(means) >= PRUNING_BEGINS and mean < quantiles(means, n=4, method="inclusive")[0]
