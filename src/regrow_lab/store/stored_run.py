"""One run as it is stored, whatever the form: its own folder, or a line of a packed file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrow_lab.config import RunConfig
from regrow_lab.store import schema

DEFAULTS = RunConfig().to_dict()


@dataclass(frozen=True)
class StoredRun:
    """One run. `metrics` has an entry an epoch, none where they are not kept; an unfinished run has no `result`."""

    folder: Path
    """Where it lives, or would if it were not packed."""
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any] | None = None
    line: str = ""
    """Where a packed run stands, as in "runs.jsonl, line 2"."""

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        return self.line or str(self.folder)

    @property
    def whole_config(self) -> dict[str, Any]:
        """Its configuration with every field: an older version's runs lack the newer ones."""
        return DEFAULTS | self.config

    def lacks(self, field: str, file: str) -> ValueError:
        """The refusal of a run that has not, in config.json or result.json, what a table needs."""
        place, remedy = (self.line, schema.LINE_ANEW) if self.line else (self.folder / file, schema.ANEW)
        return ValueError(f"{place} has no field {field!r}: {remedy}")


def one_of(first: StoredRun, second: StoredRun) -> StoredRun:
    """Of two records of one run the one that says more. Raises ValueError if they contradict each other."""
    if first.whole_config != second.whole_config:
        what = "configurations"
    elif first.result is None or second.result is None:
        return second if first.result is None else first
    elif first.result != second.result:
        what = "results"
    elif first.metrics and second.metrics and first.metrics != second.metrics:
        what = "metrics"
    else:
        return first if first.metrics else second
    raise ValueError(
        f"{first.place} and {second.place} are of one run, and contradict each other in their {what}: "
        "move away the one that you do not trust"
    )


def check_metrics(place: Path | str, run: StoredRun, remedy: str) -> None:
    """Refuse the metrics of a finished run that lack epochs, or have some twice: its result says where it ended."""
    rows, steps = run.metrics, (run.result or {}).get("steps")
    last = rows[-1].get("step") if rows else 0
    in_order = [row.get("epoch") for row in rows] == list(range(1, len(rows) + 1))
    if not in_order or steps not in (None, last):
        raise ValueError(
            f"{place} has {len(rows)} lines up to step {last!r:.40}, not the epochs of a run of {steps} steps: {remedy}"
        )
