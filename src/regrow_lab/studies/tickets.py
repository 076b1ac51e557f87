"""Lottery tickets: iterative pruning, its rewinding and controls; instability against the rewind step."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.methods import imp_sparsity
from regrow_lab.studies.settings import CIFAR_10, grid, row, setting

LEVELS = {"small": 20, "paper": 12}
LATE = 0.05
"""Share of the training to which late rewinding goes back."""
REWINDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
STABLE_AT = (5, 10)
"""Rounds of pruning after which a ticket's instability is measured too."""
TICKET_REWINDS = (0.0, 0.02, LATE, 0.1, 0.2)
"""Rewind steps of those tickets, as shares of the training; each takes all the rounds before."""


def tickets(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """IMP with rewinding to 0 and to 5 %, with fine-tuning, with its two controls; instability of nets and tickets.

    The controls are the masks of rewinding to 0 with other initial weights, and shuffled in each layer. Instability is
    the error on the line between two trainings that part at the rewind step: in result.json, as `line`.

    Cost: 20 rounds × 5 kinds, and for the instability 7 dense nets and 10 rounds × 3 more rewind steps, a seed. Small:
    a second a run on digits. Paper (WRN-22-2 on CIFAR-10, 12 rounds): 108 runs of some 2 hours on a GTX 1080. A round
    needs the one before it.

    Expected on digits with LeNet-300-100: rewinding stays within a percent of the dense net down to a density of some
    5 %; shuffled and re-initialised masks fall off earlier. Instability falls towards 0 as the rewind step grows.
    """
    base = setting(scale, data, CIFAR_10)
    levels = [imp_sparsity(level) for level in range(1, LEVELS.get(scale, 0) + 1)]
    kinds = [row("imp"), row("imp", rewind=LATE), row("imp", start="trained")]
    kinds += [row("imp", start="reinitialized"), row("imp", start="shuffled")]
    runs = grid(base, [row("dense")], (), seeds)
    for kind in kinds:
        runs += grid(base, [kind], levels, seeds)
    runs += grid(base, [row("dense", rewind=rewind, data_order=1) for rewind in REWINDS], (), seeds)
    for rewind in TICKET_REWINDS:
        if rewind not in (0.0, LATE):  # whose rounds are there
            runs += grid(base, [row("imp", rewind=rewind)], levels[: max(STABLE_AT)], seeds)
        ends = [imp_sparsity(level) for level in STABLE_AT]
        runs += grid(base, [row("imp", rewind=rewind, data_order=1)], ends, seeds)
    return sorted(runs, key=lambda run: run.seed)
