"""How long runs will take here: as long as stored ones of their kind did, else by a step that is timed."""

from __future__ import annotations

import platform
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from regrow_lab.config import RunConfig
from regrow_lab.report.columns import unit_of
from regrow_lab.store import folders

KIND = (
    "model", "data", "method", "batch_size", "precision", "storage", "augmentation", "image_size", "sequence_length",
    "compiled",
)  # fmt: skip
"""What decides how long an epoch takes, as far as one can tell beforehand."""
RESULTS = Path("results")
Kind = tuple[object, ...]
Step = Callable[[RunConfig], tuple[float, int] | None]


@dataclass(frozen=True)
class Estimate:
    """Seconds that runs take one after another, and what that follows from; None where nothing tells."""

    seconds: float | None
    because: tuple[str, ...]

    def in_words(self, at_a_time: int) -> str:
        """As in `some 2.5 hours, 2 runs at a time`."""
        if self.seconds is None:
            return "nobody can tell how long"
        return f"some {duration(self.seconds / at_a_time)}, {at_a_time} run{'s' * (at_a_time > 1)} at a time"


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(40), duration(5000), duration(9000), duration(900_000)
    ('40 seconds', '83 minutes', '2.5 hours', '250 hours')
    """
    unit, name = unit_of([seconds])
    return f"{seconds / unit:.{1 if unit == 3600 and seconds < 36_000 else 0}f} {name}"


def estimated(runs: Sequence[RunConfig], directories: Sequence[Path], device: str, step: Step) -> Estimate:
    """What these runs take, each on one thread (or GPU).

    Args:
        runs: those that are to be trained.
        directories: whose stored runs are looked at first, before those of `results`.
        device: where they will be trained.
        step: times a step of a run; gives seconds and the steps of an epoch, None where that cannot be.
    """
    stored = _stored([*directories, *sorted(RESULTS.glob("*"))], device)
    timed = dict[Kind, tuple[float, int] | None]()
    total, like, said, unknown = 0.0, Counter[str](), list[str](), Counter[str]()
    for run in runs:
        kind = tuple(getattr(run, field) for field in KIND)
        if kind in stored:
            folder, seconds = stored[kind]
            total += seconds * run.total_epochs
            like[folder] += 1
            continue
        net = tuple(value for field, value in zip(KIND, kind, strict=True) if field not in ("method", "storage"))
        what = f"{run.model} on {run.data}"
        if net not in timed:
            timed[net] = of_a_step = step(run)
            if of_a_step is not None:
                said.append(f"{what}: a step of the dense net takes {of_a_step[0]:.2g} s, timed here and now")
        match timed[net]:
            case seconds, batches:
                total += seconds * batches * run.total_epochs
            case None:
                unknown[what] += 1
    because = [f"{number} runs: as those of their kind took that {where} holds" for where, number in like.items()]
    because += said
    because += [
        f"{number} runs of {what}: no stored run tells, and there are no data" for what, number in unknown.items()
    ]
    return Estimate(None if unknown else total, tuple(because))


def check_cost(runs: Sequence[RunConfig], directories: Sequence[Path], at_a_time: int) -> None:
    """Refuse runs at the paper's scale on a CPU that nobody has said yes to. Raises ValueError with what they cost."""
    from regrow_lab.run.timed_step import seconds_of_a_step

    if runs:
        estimate = estimated(runs, directories, "cpu", lambda run: seconds_of_a_step(run, "cpu"))
        raise ValueError(
            f"{len(runs)} runs at the paper's scale on a CPU: {estimate.in_words(at_a_time)} "
            f"({'; '.join(estimate.because)}): give --yes to begin, or --device cuda where there is a GPU"
        )


def _stored(directories: Iterable[Path], device: str) -> dict[Kind, tuple[str, float]]:
    """Kind -> the first of the folders that has finished runs of it, and the median time of their epochs."""
    found: dict[Kind, tuple[str, float]] = {}
    for directory in directories:
        epochs: dict[Kind, list[float]] = defaultdict(list)
        with suppress(ValueError, OSError):  # no folder of runs
            for run in folders.read_runs(directory):
                config, result = run.whole_config, run.result or {}
                if result.get("status") == "finished" and _is_alike(str(result.get("machine")), device):
                    length = round(config["epochs"] * config["multiplier"])
                    epochs[tuple(config[field] for field in KIND)].append(result["seconds"] / length)
        for kind, seconds in epochs.items():
            found.setdefault(kind, (str(directory), statistics.median(seconds)))
    return found


def _is_alike(machine: str, device: str) -> bool:
    """Whether a stored run's machine is of the kind of this one, as far as its description tells."""
    if device == "cpu":
        return machine.startswith(f"{platform.system()} {platform.machine()},")
    from regrow_lab.run.machine import describe, device_named

    return machine == describe(device_named(device))
