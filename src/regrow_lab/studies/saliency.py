"""Masks chosen before training, each by a score of the initial weights, beside masks drawn at random."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.report.claims import above
from regrow_lab.report.pairs import keys, versus
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import BEYOND, BOTH, CIFAR_10, grid, row, setting

SPARSITIES = (0.9, 0.95, 0.98, 0.99)


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """SNIP, GraSP and OBD on the untrained net, beside static random masks; every mask stays as it is."""
    rows = [row("dense"), row("snip"), row("grasp"), row("obd"), *(row("static", name) for name in BOTH)]
    return grid(setting(scale, data, CIFAR_10), rows, SPARSITIES, seeds)


SALIENCY = Study(
    name="saliency",
    about="nothing of the report: SNIP, GraSP and OBD as masks chosen before training, beside random ones",
    runs=_runs,
    cost=(
        "21 runs a seed. Small: a second a run on digits. Paper (the report's WRN-22-2 on CIFAR-10, of which it "
        "trains only the static rows): some 2 hours a run on a GTX 1080."
    ),
    expected=(
        "on digits: SNIP 97.5, 97.2, 93.9, 83.3; GraSP the same within noise, but one seed in three falls apart "
        "at .99; OBD, which assumes a minimum that an untrained net is not at, with them at .9 and far below at "
        ".98 (83.5); static random with ERK 96.5, 93.4, 41, 17."
    ),
    other_images=True,
    claims={
        BEYOND: {
            "SNIP's masks are above random ones (not in the report)": above(
                versus(keys("snip"), keys("static", *BOTH))
            ),
        },
    },
)
