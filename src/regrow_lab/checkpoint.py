"""Checkpoints of a run under way: written whole, and looked through before anything of one is taken up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regrow_lab import sealed

if TYPE_CHECKING:
    from regrow_lab.training import Training


def write(path: Path, training: Training) -> None:
    """Put the state of the run in the place of `path`, the whole file or nothing of it."""
    sealed.save(path, sealed.CHECKPOINT, {"config": training.config.to_dict(), **training.state_dict()})


def resume(training: Training, path: Path) -> None:
    """Set a fresh run to where its checkpoint was taken.

    Raises ValueError if the file is broken, or of another run or version, and says which.
    """
    try:
        state = sealed.load(path, sealed.CHECKPOINT, training.device)
    except ValueError as error:
        raise ValueError(f"{error}; delete it to start the run anew") from error
    try:
        _check(training, state)
        training.load_state_dict(state)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be resumed: {reason}; delete it to start the run anew") from error


def _check(training: Training, state: dict[str, Any]) -> None:
    """Refuse the state of another run, and one whose parts do not fit each other, with a ValueError."""
    here = training.config.to_dict()
    for name, value in state["config"].items():
        if here.get(name, value) != value:
            raise ValueError(f"it is of another run: {name} {value!r}, here {here[name]!r}")
    step, rows, losses = state["step"], state["rows"], state["losses"]
    if not 0 <= step <= training.total_steps or (len(rows), len(losses)) != divmod(step, training.batches):
        raise ValueError(f"it stands at step {step} with {len(rows)} epochs and {len(losses)} steps in hand")
    for number, values in state["optimizer"]["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.dim() and tuple(value.shape) != training.shapes[number]:
                raise ValueError(f"its {name} of parameter {number} has shape {tuple(value.shape)}")
