"""Trials that are given up: never the reference, without which a search has no report."""

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest
from machines import PROBLEM, Machine
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from regrow_lab import store
from regrow_lab.config import RunConfig
from regrow_lab.tuning.problem import ALPHAS, INTERVALS, REFERENCE
from regrow_lab.tuning.queue import PLACE
from regrow_lab.tuning.search import begin

SPACE = {"alpha": FloatDistribution(*ALPHAS, step=0.001), "dT": IntDistribution(*INTERVALS[:2], step=INTERVALS[2])}


def a_trial(place: int, state: TrialState, value: float, **params: float) -> FrozenTrial:
    seeds = {0: value} if state == TrialState.PRUNED else {0: value, 1: value}
    attributes = {PLACE: place, "worker": "another"}
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=params,
        distributions=SPACE,
        user_attrs=attributes,
        intermediate_values=seeds,
    )


@pytest.mark.parametrize("given_up_before", [False, True], ids=["under-way", "given-up-before"])
def test_the_reference_is_never_given_up_and_one_that_was_is_tried_again(given_up_before: bool, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.options = dataclasses.replace(machine.options, prune=True, trials=7)
    begin(machine.options, [PROBLEM])
    study = optuna.load_study(study_name=machine.options.study_name(PROBLEM), storage=machine.storage())
    if given_up_before:
        study.add_trial(a_trial(0, TrialState.PRUNED, 10.0, **REFERENCE))
    for place in range(1, 7):  # all of them better: the reference is the worst after its first seed
        study.add_trial(a_trial(place, TrialState.COMPLETE, 99.9, alpha=0.2 + place / 100, dT=50))
    machine.go()
    [reference] = [trial for trial in machine.trials() if trial.params == REFERENCE and trial.state.is_finished()][-1:]
    assert reference.state == TrialState.COMPLETE
    assert reference.user_attrs[PLACE] == 0
    assert {run.run_id for run in PROBLEM.runs(REFERENCE)} <= set(machine.trained)
    assert sum(trial.state == TrialState.COMPLETE for trial in machine.trials()) == 7


class Lucky(Machine):
    """Every trial shines with its first seed, and fails with the others."""

    def train(self, run: RunConfig, directory: Path, **_: Any) -> dict[str, Any]:
        folder = store.run_folder(directory, run)
        if not store.is_finished(folder):
            folder.mkdir(parents=True)
            store.write_json(folder / "result.json", {"validation_accuracy": 10.0 if run.seed else 98.0})
        return store.read_json(folder / "result.json")


def test_a_lucky_first_seed_does_not_keep_a_trial_alive(tmp_path: Path) -> None:
    machine = Lucky(tmp_path, dataclasses.replace(PROBLEM, seeds=3))
    machine.options = dataclasses.replace(machine.options, prune=True, trials=9)
    begin(machine.options, [machine.problem])
    study = optuna.load_study(study_name=machine.options.study_name(PROBLEM), storage=machine.storage())
    for place in range(1, 7):
        study.add_trial(a_trial(place, TrialState.COMPLETE, 80.0 + place, alpha=0.2 + place / 100, dT=50))
    machine.go()
    given_up = [trial.intermediate_values for trial in machine.trials() if trial.state == TrialState.PRUNED]
    assert given_up == [{0: 98.0, 1: 54.0}] * 2
