"""Every method on scikit-learn's digits with LeNet-300-100."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.studies.record import Study

SPARSITIES = (0.9, 0.95, 0.98, 0.99)


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """Every method, LeNet-300-100 on the 1,797 digits of scikit-learn, at sparsities .9, .95, .98 and .99."""
    if data not in (None, "digits"):
        raise ValueError(f"the study digits is on digits, given data {data}: take table2")
    return [
        configuration for seed in range(seeds) for configuration in (RunConfig(seed=seed), *_sparse(seed))
    ]  # seed by seed: a study that is stopped early has every row already


def _sparse(seed: int) -> list[RunConfig]:
    def runs(method: str, *distributions: str | None, multiplier: int = 1) -> list[RunConfig]:
        return [
            RunConfig(method=method, sparsity=sparsity, distribution=distribution, multiplier=multiplier, seed=seed)
            for distribution in distributions
            for sparsity in SPARSITIES
        ]

    both = ("uniform", "erk")
    return [
        *runs("rigl", *both, multiplier=2),  # the longest first, so that no worker is left with one at the end
        *runs("small-dense", None),
        *runs("static", *both),
        *runs("snip", None),
        *runs("set", *both),
        *runs("rigl", *both),
        *runs("snfs", *both),
        *runs("rigl-sg", *both),
        *runs("rigl-sm", *both),
        *runs("pruning", None),
    ]


DIGITS = Study(
    name="digits",
    about="every method on scikit-learn's digits (small only)",
    runs=_runs,
    cost=(
        "207 runs at 3 seeds, 0.6 to 1 s each on one core of a good day, 1.1 to 1.6 s of another, the 24 RigL_2x twice."
    ),
    expected=(
        "test accuracy in percent, with ERK and at the four sparsities: dense 98.3; static 96.5, 93.4, 41, 17; "
        "SET 97.2, 95.4, 84, 34; SNIP 97.5, 97.2, 93.9, 83.3; RigL 97.1, 96.1, 95.1, 88.7. The standard deviation "
        "over seeds is some tenths where the accuracy is above 94, a few points down to 80, and 5 to 25 where a "
        "net falls apart. `uniform` sparsifies every layer."
    ),
    scales=("small",),
)
