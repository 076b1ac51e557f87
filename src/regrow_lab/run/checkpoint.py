"""Checkpoints of a run under way: written whole, and looked through before anything of one is taken up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regrow_lab.run import checkpoint_files

if TYPE_CHECKING:
    from regrow_lab.run.training import Training

State = dict[str, Any]
PARTS = ("config", "step", "losses", "rows", "model", "optimizer", "sparsifier", "random", "device_random", "seconds")


def write(path: Path, training: Training) -> None:
    """Put the state of the run in the place of `path`, the whole file or nothing of it."""
    checkpoint_files.save(
        path, checkpoint_files.CHECKPOINT, {"config": training.config.to_dict(), **training.state_dict()}
    )


def resume(training: Training, path: Path) -> None:
    """Set a fresh run to where its checkpoint was taken.

    Raises ValueError if the file is broken, or of another run or version, and says which.
    """
    try:
        state = checkpoint_files.load(path, checkpoint_files.CHECKPOINT, training.device)
    except ValueError as error:
        raise ValueError(f"{error}; delete it to start the run anew") from error
    try:
        _check_parts(training, state)
        optimizer = _check_optimizer(training, state["optimizer"], state["step"])
        training.load_state_dict({**state, "optimizer": optimizer})
        _check_counts(training, state)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be resumed: {reason}; delete it to start the run anew") from error


def _expect(condition: bool, found: str) -> None:
    if not condition:
        raise ValueError(found)


def _check_parts(training: Training, state: State) -> None:
    """Refuse the state of another run, and one whose parts do not fit each other, with a ValueError."""
    missing = [name for name in PARTS if name not in state]
    _expect(not missing, f"it lacks {', '.join(missing)}")
    here = training.config.to_dict()
    for name, value in state["config"].items():
        if here.get(name, value) != value:
            raise ValueError(f"it is of another run: {name} {value!r}, here {here[name]!r}")
    _expect(
        state.get("data", "") == training.data_fingerprint,
        f"data {training.config.data} returns other samples than when it was written: have it return the same ones",
    )
    step, rows, losses, seconds = state["step"], state["rows"], state["losses"], state["seconds"]
    _expect(type(step) is int, f"its step is {step!r:.40}, a whole number was expected")
    _expect(isinstance(rows, list) and isinstance(losses, list), "its rows or losses are no list")
    _expect(
        0 <= step <= training.total_steps and (len(rows), len(losses)) == divmod(step, training.batches),
        f"it stands at step {step} with {len(rows)} epochs and {len(losses)} steps in hand",
    )
    for epoch, row in enumerate(rows, start=1):
        _expect(_is_row(row, epoch, epoch * training.batches), f"its metrics of epoch {epoch} are {row!r:.80}")
    for loss in losses:
        _expect(_is_like(loss, torch.zeros((), device=training.device)), f"a loss is {_described(loss)}")
    _expect(_is_number(seconds) and seconds >= 0, f"its seconds are {seconds!r:.40}")
    for name, tensor in training.model.state_dict().items():
        value = state["model"].get(name, tensor)
        sound = isinstance(value, Tensor) and value.dtype == tensor.dtype and value.device == tensor.device
        _expect(sound, f"its {name} is {_described(value)}, {_described(tensor)} was expected")
    masked = state["sparsifier"] is not None
    late, early = step > training.masks_at or not training.masks_at, step < training.masks_at
    _expect(masked or not (training.algorithm and late), f"it has no masks at step {step}, and this run has")
    _expect(not masked or not (early or training.algorithm is None), f"it has masks at step {step}, this run has none")


def _is_row(row: Any, epoch: int, step: int) -> bool:
    return (
        isinstance(row, dict)
        and (row.get("epoch"), row.get("step")) == (epoch, step)
        and all(isinstance(name, str) and (value is None or _is_number(value)) for name, value in row.items())
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_optimizer(training: Training, found: State, run_step: int) -> State:
    """The optimizer's state in tensors laid out as its own are, as its kernels trust them blindly.

    Its settings are those of the run: what the file says of them is not taken up.
    """
    state, expected = found["state"], training.optimizer_state
    _expect(
        isinstance(state, dict) and (not state or state.keys() == expected.keys()),
        f"its optimizer has a state of {len(state)} parameters, this run's of {len(expected)}",
    )
    taken_up: State = {}
    for number, values in state.items():
        _expect(
            isinstance(values, dict) and values.keys() == expected[number].keys(),
            f"the state of parameter {number} is not {', '.join(expected[number])}",
        )
        taken_up[number] = {}
        for name, own in expected[number].items():
            value, where = values[name], f"its {name} of parameter {number}"
            like = torch.empty_like(own, device=training.device)
            _expect(_is_like(value, like), f"{where} is {_described(value)}, {_described(like)} was expected")
            if name == "step":
                count = value.item()
                _expect(
                    count in range(run_step + 1), f"{where} is {count}, a number of steps up to {run_step} was expected"
                )
            taken_up[number][name] = like.copy_(value)
    return {"state": taken_up, "param_groups": training.optimizer.state_dict()["param_groups"]}


def _is_like(value: Any, other: Tensor) -> bool:
    """Whether a value is a plain tensor of the shape, kind and device of another."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)
    )


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{value!r:.40}"
    return f"a tensor of shape {tuple(value.shape)} ({value.dtype}, {value.layout}, on {value.device})"


def _check_counts(training: Training, state: State) -> None:
    """Refuse counters that contradict the step at which the run stands; that they fit each other is known by now."""
    saved, algorithm, weight_steps = state["sparsifier"], training.algorithm, training.step
    if saved is not None and algorithm is not None:
        since, updates, steps = training.step - training.masks_at, saved["num_updates"], saved["weight_steps"]
        in_place = 0 if algorithm.step_on_update else updates
        weight_steps -= in_place
        _expect(
            0 <= updates <= since and steps == since - in_place,
            f"its masks stand at weight step {steps!r:.40} after {updates!r:.40} updates, {since} steps in",
        )
    _expect(
        bool(state["optimizer"]["state"]) or not (training.optimizer_state and weight_steps),
        f"its optimizer has no state after {weight_steps} weight steps",
    )
