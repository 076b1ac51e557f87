"""What a paper claims, held against stored runs: what holds, what does not, what was not tested, and by how much.

A claim is a part of the record of the study that was made for it, and is judged by the cells of all studies: alike in
all but what it is about. A cell counts only with two finished seeds or more on both sides; its difference counts where
Welch's t-test puts it beyond noise at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from regrow_lab.report.pairs import COLLAPSED, Cells, Finder, Pair, telling
from regrow_lab.store.escaping import in_markdown

MARGIN = 0.5
"""Points that a method may lie below another on average and still be called no worse."""
HEAD = ("| Claim | Our runs | Figures |", "| --- | --- | --- |")
UNTOLD = "no stored runs that could tell"


@dataclass(frozen=True)
class Verdict:
    """What the stored runs say of a claim: holds, does not hold, divided, not shown or not tested; and the figures."""

    word: str = "not tested"
    figures: str = UNTOLD
    cells: int = 0
    """How many it follows from."""


Judge = Callable[[Sequence[Cells]], Verdict]
"""What the cells of the studies say."""
Claims = Mapping[str, Mapping[str, Judge]]
"""A question -> a sentence that answers it -> how that is judged."""


def above(find: Finder) -> Judge:
    """Holds where the pairs are for the one side beyond chance, does not hold where they are for the other."""
    return partial(_judged, find, "above")


def no_worse(find: Finder) -> Judge:
    """Holds where the mean is less than `MARGIN` below, does not hold where the pairs are against it beyond chance."""
    return partial(_judged, find, "no worse")


def near_the_best(find: Finder) -> Judge:
    """No worse than the best of several, which is best by its luck too: only what is beyond noise counts."""
    return partial(_judged, find, "near the best")


def _judged(find: Finder, says: str, studies: Sequence[Cells]) -> Verdict:
    """The pairs of all studies; cells are compared within a study alone, and what two hold alike counts once."""
    pairs = (pair for cells in studies for pair in telling(find(cells), cells))
    distinct = {(pair.where, pair.one.mean, pair.other.mean): pair for pair in pairs}
    evidence = _Evidence(says, tuple(distinct.values()))
    return Verdict(evidence.word, evidence.figures, len(evidence.pairs)) if evidence.pairs else Verdict()


@dataclass(frozen=True)
class _Evidence:
    """Pairs of cells, one or more, and what is said of them."""

    says: str
    pairs: tuple[Pair, ...]

    @property
    def word(self) -> str:
        """Over all cells; divided where it holds on one net and does not on another, judged by their cells alone."""
        if {"holds", "does not hold"} <= {each.alone for each in self.places.values()}:
            return "divided"
        return self.alone

    @property
    def alone(self) -> str:
        """The same without a look at the nets apart."""
        if self.beyond_chance(-1):
            return "does not hold"
        if self.says == "near the best":
            return "holds"
        supported = self.mean > -MARGIN if self.says == "no worse" else self.beyond_chance(1)
        return "holds" if supported else "not shown"

    @property
    def places(self) -> dict[str, _Evidence]:
        """The same of each net and data set."""
        found: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            found.setdefault(f"{pair.one.model} on {pair.one.data}", []).append(pair)
        return {place: _Evidence(self.says, tuple(pairs)) for place, pairs in found.items()}

    def beyond_chance(self, sign: int) -> bool:
        """Whether more cells lie on one side than chance would put there in one case of twenty.

        Either by those beyond noise, of which chance puts one in forty on each side, or by their direction alone, which
        is that of a coin.
        """
        chances = [_at_least(self.count(sign), len(self.pairs), 1 / 40)]
        if self.says != "near the best":
            directed = [pair for pair in self.pairs if pair.difference]
            chances.append(_at_least(sum(pair.difference * sign > 0 for pair in directed), len(directed), 1 / 2))
        return len(chances) * min(chances) <= 0.05

    def count(self, sign: int) -> int:
        """Cells with that sign."""
        return sum(pair.sign == sign for pair in self.pairs)

    @property
    def mean(self) -> float:
        """Mean difference over the cells, in points."""
        return math.fsum(pair.difference for pair in self.pairs) / len(self.pairs)

    @property
    def figures(self) -> str:
        """The counts, the mean difference, and which way it goes on each net, in words."""
        widest = max(self.pairs, key=lambda pair: abs(pair.difference))
        each = (
            f"{place} {sum(pair.difference > 0 for pair in part.pairs)} of {len(part.pairs)} up, mean {part.mean:+.2f}"
            + (f": {part.alone}" if len(self.places) > 1 else "")
            for place, part in self.places.items()
        )
        return (
            f"{self.count(1)} of {len(self.pairs)} cells above beyond noise, {self.count(-1)} below, "
            f"{self.count(0)} within; mean difference {self.mean:+.2f} points, widest {widest.difference:+.1f} "
            f"({widest.where}); {'; '.join(each)}"
        )


def _at_least(successes: int, trials: int, chance: float) -> float:
    """Probability of so many successes or more.

    >>> _at_least(2, 2, 0.5), _at_least(0, 9, 0.1)
    (0.25, 1.0)
    """
    ways = (math.comb(trials, n) * chance**n * (1 - chance) ** (trials - n) for n in range(successes, trials + 1))
    return min(1.0, math.fsum(ways))


def claims_page(claims: Iterable[Claims], studies: Mapping[str, Cells], scales: Mapping[str, str]) -> str:
    """The page in Markdown, by question in alphabetical order; made from stored runs alone.

    Args:
        claims: what the studies were made to test.
        studies: name -> its cells.
        scales: name -> the scale and the data it was done at and how many runs it has, in words.
    """
    lines = ["# The report's questions against our runs", "", "Made by `regrow report` from the stored runs alone.", ""]
    of_each = list(claims)
    for question in sorted({question for each in of_each for question in each}):
        lines += [f"## {question}", "", *HEAD]
        for text, judge in ((text, judge) for each in of_each for text, judge in each.get(question, {}).items()):
            verdict = judge(list(studies.values()))
            lines.append(f"| {text} | **{verdict.word}** | {in_markdown(verdict.figures)} |")
        lines.append("")
    lines += [
        "## How it is judged",
        "",
        "A cell is one method at one sparsity, over its seeds. Two cells differ beyond noise where Welch's t-test "
        "says so at 5 %. A side is favoured where more cells are on it than chance puts there at 5 %: counted by "
        "those beyond noise (chance: one in forty on a side) or by the sign of the difference alone (chance: one "
        'in two), the smaller probability doubled for having looked twice. "Above" (or "below", "worse") holds '
        'where its side is favoured and does not hold where the other is; else it is not shown. "No worse" does '
        f"not hold where the other side is favoured; else it holds if the mean difference is above -{MARGIN:g} "
        "points, and is not shown if it is not. All nets are judged together; what the cells of each say alone stands "
        "after their mean, and a claim that holds on one net and does not hold on another is divided. (The best of "
        "those tried is best by luck too: against it only cells beyond noise count.) Cells with fewer than two "
        f"finished seeds are left out, and so are pairs of which both sides are under {COLLAPSED:.0%} of the dense "
        "accuracy; where one side alone has collapsed, that is a difference, and a wide one. Of two folders that hold "
        "the same study, as one done in two storages, the first counts.",
        "",
        "## What the runs are",
        "",
        *(f"- {in_markdown(f'{name}: {scales[name]}')}" for name in studies),
    ]
    return "\n".join(lines) + "\n"
