"""Ratios that were measured on this machine, kept in files: one for each subject, CPU, engine, torch and number of
threads.

A process believes a ratio from its first use on, and a sparsifier's state carries it into the process that goes on with
the run: what is measured anew meanwhile changes no run under way.
"""

import functools
import hashlib
import json
import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from regrow.compaction.timings import side_by_side
from regrow.compaction.timings.side_by_side import Timing
from regrow.engine import native
from regrow_files import content_of, json_of

VARIABLE = "REGROW_CACHE"
"""Environment variable: the folder; by default regrow in the user's cache folder."""
SCHEMA = 2
OLD = 180 * 86_400
"""Seconds after which what was measured in peace is measured again, as systems are updated."""
SOON = 3_600
"""The same of what was measured under load, or is not to be trusted."""
MOST_BYTES = 1 << 16
HIGHEST = 1e6
"""No ratio is so large."""

logger = logging.getLogger("regrow")
_believed: dict[str, tuple[float, ...]] = {}


@dataclass(frozen=True)
class Record:
    """What a file holds.

    Attributes:
        ratios: how many times faster each way is than the first.
        trusted: whether they were narrow and plausible.
        spread: of the ratios, see :class:`Timing`.
        rounds: of the comparison.
        load: processes a core that wanted to run then.
        date: of the measurement, in UTC.
        subject: what was measured, in words.
        machine: CPU, instruction set, torch, engine and number of threads.
    """

    ratios: tuple[float, ...]
    trusted: bool
    spread: float
    rounds: int
    load: float
    date: datetime
    subject: str
    machine: Mapping[str, Any]

    def is_due(self) -> bool:
        """Whether it is to be measured again, once the machine is quiet."""
        in_peace = self.trusted and self.load <= side_by_side.QUIET
        return (datetime.now(UTC) - self.date).total_seconds() > (OLD if in_peace else SOON)


def path_of(subject: str, *parts: object) -> Path:
    """The file of a subject that is described by ``parts``, on this machine."""
    key = repr([SCHEMA, *machine().values(), *parts])
    return _folder() / f"{subject}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.json"


def machine() -> dict[str, Any]:
    """What a ratio is of: another CPU, instruction set, torch, engine or number of threads has others."""
    return {
        "cpu": _cpu(),
        "instructions": native.instruction_set(),
        "torch": torch.__version__,
        "engine": _engine(),
        "threads": torch.get_num_threads(),
    }


def ratios(
    path: Path,
    subject: str,
    measure: Callable[[], Timing],
    is_plausible: Callable[[Timing], bool],
    usual: tuple[float, ...],
) -> tuple[float, ...]:
    """How many times faster each way is, from this process's memory or the file; else measured, and kept in the file.

    Args:
        path: of :func:`path_of`.
        subject: what it is about, in words.
        measure: makes a timing.
        is_plausible: whether the ratios of one can be.
        usual: what is believed where they cannot be trusted.
    """
    name = path.stem
    if len(_believed.get(name, ())) != len(usual):  # of no use is also what an odd state brought
        kept = _read(path, len(usual))
        if kept is None or (kept.is_due() and side_by_side.load() <= side_by_side.QUIET):
            _say_once()
            kept = _agreed(path, _made(subject, measure, is_plausible), kept, len(usual))
        _believed[name] = kept.ratios if kept.trusted else usual
    return _believed[name]


def believed() -> dict[str, list[float]]:
    """The ratios that this process goes by, name of the file → ratios."""
    return {name: list(found) for name, found in _believed.items()}


def believe(found: Mapping[str, Sequence[float]]) -> None:
    """Goes by these from now on, whatever files say.

    Args:
        found: of :func:`believed`, in a process before; of another machine they have no effect here.
    """
    _believed.update({name: tuple(values) for name, values in found.items()})


def forget() -> None:
    """Has the files looked at again."""
    _believed.clear()


@functools.cache
def _say_once() -> None:
    """A warning, as only those show where nobody has set up logging: without it a first step seems to hang."""
    logger.warning(
        "regrow: timing its kernels on this machine, once for each kind of layer, about a second each; kept in %s",
        _folder(),
    )


def _made(subject: str, measure: Callable[[], Timing], is_plausible: Callable[[Timing], bool]) -> Record:
    before = side_by_side.load()
    found, trusted = side_by_side.attempts(measure, is_plausible)
    return Record(found.ratios, trusted, found.spread, found.rounds, before, datetime.now(UTC), subject, machine())


def _agreed(path: Path, made: Record, kept: Record | None, count: int) -> Record:
    """The record that all processes on the machine go by, so that two that measure at once do not decide differently.

    What another one wrote meanwhile counts; and what was to be trusted is not given up for what is not.
    """
    now = _found(path, count)
    if now is not None and not isinstance(now, str) and not now.is_due():
        return now
    if kept is not None and kept.trusted and not made.trusted:
        return kept
    _write(path, made)
    return made


def _read(path: Path, count: int) -> Record | None:
    """What a file holds; None where there is none, or not a sound one, which is said."""
    found = _found(path, count)
    if isinstance(found, str):
        logger.warning("regrow: %s is damaged (%s): it is measured anew", path, found)
        return None
    return found


def _found(path: Path, count: int) -> Record | str | None:
    """What a file holds; None where there is none, and what is wrong with it in words."""
    if not path.exists():
        return None
    try:
        return _record(json_of(content_of(path, MOST_BYTES)), count)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:100]


def _record(fields: Any, count: int) -> Record:
    found = Record(**{**fields, "ratios": tuple(fields["ratios"]), "date": datetime.fromisoformat(fields["date"])})
    if not are_ratios(found.ratios) or len(found.ratios) != count or not isinstance(found.trusted, bool):
        raise ValueError(f"ratios {found.ratios!r:.40}, trusted {found.trusted!r:.40}")
    if not is_number(found.load) or found.date.tzinfo is None:
        raise ValueError(f"load {found.load!r:.40}, date {fields['date']!r:.40}")
    return found


def are_ratios(values: Any) -> bool:
    """Whether these are numbers that can be ratios."""
    return isinstance(values, (list, tuple)) and all(is_number(value) and value < HIGHEST for value in values)


def is_number(value: Any) -> bool:
    """Whether this is a finite number, 0 or more."""
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _write(path: Path, made: Record) -> None:
    """Keeps it; in a folder that cannot be written to, it is measured again by the next process."""
    text = json.dumps({**asdict(made), "date": made.date.isoformat(timespec="seconds")}, indent=1)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as under_way:
            beside = Path(under_way) / path.name
            beside.write_text(text)
            os.replace(beside, path)


def _folder() -> Path:
    base = os.environ.get(VARIABLE)
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regrow"


@functools.cache
def _engine() -> str:
    library = Path(str(native.extension().__file__)).stat()
    return f"{library.st_size} bytes of {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(library.st_mtime))}"


@functools.cache
def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
