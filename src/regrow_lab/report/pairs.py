"""Cells of the studies set against each other: which pairs there are, and whether their difference is beyond noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from regrow_lab.report.summary import Summary

COLLAPSED = 0.5
"""Two cells that are both below this share of the dense net's accuracy tell nothing of an order."""


@dataclass(frozen=True)
class Pair:
    """Two cells that a claim sets against each other, and what they have in common."""

    where: str
    one: Summary
    other: Summary

    @property
    def difference(self) -> float:
        """Mean of the one less mean of the other, in points."""
        assert self.one.mean is not None
        assert self.other.mean is not None
        return self.one.mean - self.other.mean

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        parts = ((side.std or 0.0) ** 2 / side.n for side in (self.one, self.other))
        return math.sqrt(sum(parts))

    @property
    def freedom(self) -> float:
        """Welch's degrees of freedom."""
        parts = [((side.std or 0.0) ** 2 / side.n, side.n) for side in (self.one, self.other)]
        return sum(part for part, _ in parts) ** 2 / sum(part**2 / (n - 1) for part, n in parts)

    @property
    def sign(self) -> int:
        """+1 or -1 where the difference is beyond the noise, else 0; 0 too where the seeds show no spread at all."""
        if not self.error or abs(self.difference) <= quantile(self.freedom) * self.error:
            return 0
        return 1 if self.difference > 0 else -1


def quantile(freedom: float) -> float:
    """Student's t at 97.5 %, for any number of degrees of freedom.

    >>> round(quantile(4), 3), round(quantile(4.9), 3)
    (2.776, 2.586)
    """
    from scipy.special import stdtrit  # takes its time to be imported, and a study is known by its claims too

    return float(stdtrit(freedom, 0.975))


Cells = Sequence[Summary]
Finder = Callable[[Cells], Iterable[Pair]]
Key = tuple[str, str | None, float, str]
"""method, distribution, multiplier, variant."""


def keys(method: str, *distributions: str | None, multiplier: float = 1, variant: str = "") -> list[Key]:
    """The rows of a method with each of `distributions`, or with none."""
    return [(method, distribution, multiplier, variant) for distribution in distributions or (None,)]


def versus(
    ones: Iterable[Key],
    others: Iterable[Key],
    *,
    same_method: bool = False,
    same_distribution: bool = False,
    model: str | None = None,
) -> Finder:
    """Pairs of the same model (`model`, or any), data and sparsity: each of `ones` against each of `others`."""
    wanted = [
        (a, b)
        for a, b in product(ones, others)
        if not (same_method and a[0] != b[0]) and not (same_distribution and a[1] != b[1])
    ]

    def find(cells: Cells) -> Iterable[Pair]:
        known = _known(cells)
        for (net, data, sparsity), rows in known.items():
            for a, b in wanted if model in (None, net) else ():
                if a in rows and b in rows:
                    where = f"{rows[a].label} against {rows[b].label}, S = {sparsity:g}, {net} on {data}"
                    yield Pair(where, rows[a], rows[b])

    return find


def telling(pairs: Iterable[Pair], cells: Cells) -> Iterable[Pair]:
    """Without the pairs both of whose sides have collapsed; where one has, that is a difference."""
    dense = {(cell.model, cell.data): cell.mean for cell in cells if cell.method == "dense" and cell.mean is not None}
    for pair in pairs:
        floor = COLLAPSED * dense.get((pair.one.model, pair.one.data), 0.0)
        if any(side.mean is not None and side.mean >= floor for side in (pair.one, pair.other)):
            yield pair


def usable(cells: Cells) -> list[Summary]:
    """Cells with an accuracy and a spread."""
    return [cell for cell in cells if cell.mean is not None and cell.n >= 2]


def _known(cells: Cells) -> dict[tuple[str, str, float], dict[Key, Summary]]:
    known: dict[tuple[str, str, float], dict[Key, Summary]] = {}
    counted = usable(cells)
    places = {(cell.model, cell.data, cell.sparsity) for cell in counted if cell.method != "dense"}
    for cell in counted:
        at = [place for place in sorted(places) if place[:2] == (cell.model, cell.data)]
        for place in at if cell.method == "dense" else [(cell.model, cell.data, cell.sparsity)]:
            known.setdefault(place, {}).setdefault(
                (cell.method, cell.distribution, cell.multiplier, cell.variant), cell
            )
    return known
