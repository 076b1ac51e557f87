"""The report's four questions against stored runs: what holds, what does not, what was not tested, and by how much.

A claim compares cells of the studies that are alike in all but what it is about. A cell counts only with two finished
seeds or more on both sides; its difference counts where Welch's t-test puts it beyond noise at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from regrow_lab.report.pairs import COLLAPSED, Finder, Key, Pair, equal_flops, same_training, telling, tuned, versus
from regrow_lab.report.summary import Summary
from regrow_lab.store.escaping import in_markdown

MARGIN = 0.5
"""Points that a method may lie below another on average and still be called no worse."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the report, which pairs of cells it speaks of, and whether it says `above` or `no worse`.

    Or `near the best`: no worse than the best of several, which is best by its luck too, so that only what is beyond
    noise counts.
    """

    text: str
    find: Finder
    says: str = "above"


@dataclass(frozen=True)
class Verdict:
    """What the stored runs say of a claim."""

    claim: Claim
    pairs: tuple[Pair, ...]

    @property
    def word(self) -> str:
        """holds, does not hold, divided, not shown, or not tested.

        Over all cells; divided where it holds on one net and does not on another, judged by their cells alone.

        above: the cells are for it beyond chance; does not hold where they are against it, not shown where neither.
        no worse: the cells are not against it, and less than `MARGIN` below on average; not shown where they are more.
        """
        if not self.pairs:
            return "not tested"
        if {"holds", "does not hold"} <= {each.alone for each in self.places.values()}:
            return "divided"
        return self.alone

    @property
    def alone(self) -> str:
        """The same without a look at the nets apart."""
        if self.beyond_chance(-1):
            return "does not hold"
        if self.claim.says == "near the best":
            return "holds"
        supported = self.mean > -MARGIN if self.claim.says == "no worse" else self.beyond_chance(1)
        return "holds" if supported else "not shown"

    @property
    def places(self) -> dict[str, Verdict]:
        """The same of each net and data set."""
        found: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            found.setdefault(f"{pair.one.model} on {pair.one.data}", []).append(pair)
        return {place: Verdict(self.claim, tuple(pairs)) for place, pairs in found.items()}

    def beyond_chance(self, sign: int) -> bool:
        """Whether more cells lie on one side than chance would put there in one case of twenty.

        Either by those beyond noise, of which chance puts one in forty on each side, or by their direction alone, which
        is that of a coin.
        """
        chances = [_at_least(self.count(sign), len(self.pairs), 1 / 40)]
        if self.claim.says != "near the best":
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
        if not self.pairs:
            return "no stored runs that could tell"
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


def _keys(method: str, *distributions: str | None, multiplier: float = 1, variant: str = "") -> list[Key]:
    return [(method, distribution, multiplier, variant) for distribution in distributions or (None,)]


BOTH = ("uniform", "erk")
QUESTIONS: Mapping[str, tuple[Claim, ...]] = {
    "1. Does RigL outperform SET and SNFS, and match pruning?": (
        Claim("RigL is above SET", versus(_keys("rigl", *BOTH), _keys("set", *BOTH), same_distribution=True)),
        Claim("RigL is no worse than SNFS at a fraction of its training FLOPs",
              versus(_keys("rigl", *BOTH), _keys("snfs", *BOTH), same_distribution=True), "no worse"),
        Claim("RigL is above static sparse training",
              versus(_keys("rigl", *BOTH), _keys("static", *BOTH), same_distribution=True)),
        Claim("RigL is above a small dense net of as many weights",
              versus(_keys("rigl", *BOTH), _keys("small-dense"))),
        Claim("RigL (ERK) is no worse than iterative pruning", versus(_keys("rigl", "erk"), _keys("pruning")),
              "no worse"),
        Claim("RigL_2x (ERK) is no worse than iterative pruning",
              versus(_keys("rigl", "erk", multiplier=2), _keys("pruning")), "no worse"),
        Claim("RigL_2x is above RigL: longer training helps",
              versus(_keys("rigl", *BOTH, multiplier=2), _keys("rigl", *BOTH), same_distribution=True)),
        Claim("RigL_2x (ERK) is no worse than the dense net",
              versus(_keys("rigl", "erk", multiplier=2), _keys("dense")), "no worse"),
        Claim("RigL_3x (ERK) is no worse than iterative pruning",
              versus(_keys("rigl", "erk", multiplier=3), _keys("pruning")), "no worse"),
        Claim("RigL with all the FLOPs of dense training is no worse than the dense net (not in the report)",
              same_training(), "no worse"),
    ),
    "2. Is RigL sensitive to its two hyperparameters, or to the learning rate?": (
        Claim("alpha = .3 with the reference dT is no worse than the best of those tried",
              tuned("drop_fraction", lambda fields: fields.get("drop_fraction") == "0.3"), "near the best"),
        Claim("learning rates .1 and .05 are no worse than the best of those tried",
              tuned("learning_rate", lambda fields: fields.get("learning_rate") in ("0.1", "0.05")), "near the best"),
    ),
    "3. How does the sparsity distribution matter at fixed parameters, and at fixed FLOPs?": (
        Claim("at fixed parameters ERK is above uniform",
              versus(_keys("rigl", "erk") + _keys("set", "erk") + _keys("static", "erk"),
                     _keys("rigl", "uniform") + _keys("set", "uniform") + _keys("static", "uniform"),
                     same_method=True)),
        Claim("the distribution matters more than the method: SET (ERK) is above RigL (uniform)",
              versus(_keys("set", "erk"), _keys("rigl", "uniform"))),
        Claim("at fixed FLOPs uniform is above ERK", equal_flops("uniform", "erk")),
        Claim("at fixed FLOPs the FLOP-aware distribution is above uniform (ours)",
              equal_flops("flop-aware", "uniform")),
        Claim("at fixed FLOPs the FLOP-aware distribution is above ERK (ours)", equal_flops("flop-aware", "erk")),
    ),
    "4. Does redistribution help RigL, and does its final distribution serve as a start?": (
        Claim("from uniform densities, RigL-SG and RigL-SM are above RigL",
              versus(_keys("rigl-sg", "uniform") + _keys("rigl-sm", "uniform"), _keys("rigl", "uniform"))),
        Claim("from uniform densities, redistribution reaches RigL (ERK)",
              versus(_keys("rigl-sg", "uniform") + _keys("rigl-sm", "uniform"), _keys("rigl", "erk")), "no worse"),
        Claim("from ERK, redistribution does not improve RigL",
              versus(_keys("rigl", "erk"), _keys("rigl-sg", "erk") + _keys("rigl-sm", "erk")), "no worse"),
        Claim("RigL started from RigL-SM's final masks is worse than RigL",
              versus(_keys("rigl", *BOTH), _keys("rigl", *BOTH, variant="start=rigl-sm"), same_distribution=True)),
        Claim("RigL started from RigL-SM's final densities alone is worse than RigL (ours)",
              versus(_keys("rigl", *BOTH), _keys("rigl", *BOTH, variant="start=rigl-sm-densities"),
                     same_distribution=True)),
    ),
    "Beyond the four questions": (
        Claim("RigL-struct is below RigL",
              versus(_keys("rigl", *BOTH), _keys("rigl-struct", *BOTH), same_distribution=True)),
        Claim("small-dense is no worse than RigL-struct (uniform)",
              versus(_keys("small-dense"), _keys("rigl-struct", "uniform")), "no worse"),
        Claim("a lottery ticket (pruning's mask) is above static", versus(_keys("lottery"), _keys("static", *BOTH))),
        Claim("an IMP ticket is above its re-initialised masks",
              versus(_keys("imp", variant="rewind=0.0"), _keys("imp", variant="rewind=0.0, start=reinitialized"))),
        Claim("a ticket rewound late is no worse than one rewound to step 0",
              versus(_keys("imp", variant="rewind=0.05"), _keys("imp", variant="rewind=0.0")), "no worse"),
        Claim("a ticket rewound to step 0 is no worse than pruning that is trained on",
              versus(_keys("imp", variant="rewind=0.0"), _keys("imp", variant="rewind=0.0, start=trained")),
              "no worse"),
        Claim("an IMP ticket is above its shuffled masks",
              versus(_keys("imp", variant="rewind=0.0"), _keys("imp", variant="rewind=0.0, start=shuffled"))),
        Claim("SNIP's masks are above random ones (not in the report)", versus(_keys("snip"), _keys("static", *BOTH))),
        Claim("on text RigL is above SET, the worst of the dynamic methods (the original's figure)",
              versus(_keys("rigl", "uniform"), _keys("set", "uniform"), model="char-gru")),
        Claim("on text pruning is above RigL (the original's figure)",
              versus(_keys("pruning"), _keys("rigl", "uniform"), model="char-gru")),
    ),
}  # fmt: skip
"""Question -> its claims."""


def judge(studies: Iterable[Sequence[Summary]]) -> dict[str, list[Verdict]]:
    """Every claim against the cells of all `studies`; cells are compared within a study alone."""
    each = [list(cells) for cells in studies]

    def pairs(claim: Claim) -> Iterable[Pair]:
        return (pair for cells in each for pair in telling(claim.find(cells), cells))

    return {
        question: [Verdict(claim, _distinct(pairs(claim))) for claim in claims]
        for question, claims in QUESTIONS.items()
    }


def _distinct(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Without the cells that two studies hold alike."""
    return tuple({(pair.where, pair.one.mean, pair.other.mean): pair for pair in pairs}.values())


TIMED = "RigL-struct takes the share of a dense net's time that its FLOPs are (supplementary, Table 2, as printed)"
HEAD = ("| Claim | Our runs | Figures |", "| --- | --- | --- |")
CLOSE = 1.1
"""A measured time of up to so many times the share of FLOPs agrees with it."""


def time_row(studies: Iterable[Sequence[Summary]]) -> tuple[str, str, str]:
    """That claim, the verdict on it, and the figures: no accuracies, so no noise of seeds to judge it by."""
    cells = [
        cell for cells in studies for cell in cells if cell.method == "rigl-struct" and cell.wall_train is not None
    ]
    if not cells:
        return TIMED, "not tested", "no stored runs that could tell"
    agree = sum((cell.wall_train or 0.0) <= CLOSE * cell.train_ratio for cell in cells)
    word = "holds" if agree == len(cells) else "does not hold"
    each = (
        f"{cell.label}, S = {cell.sparsity:g}: time {cell.wall_train:.2f}x, FLOPs {cell.train_ratio:.2f}x"
        for cell in cells
    )
    nets = ", ".join(dict.fromkeys(f"{cell.model} on {cell.data}" for cell in cells))
    return TIMED, word, f"{agree} of {len(cells)} cells within {CLOSE - 1:.0%}; {'; '.join(each)} ({nets})"


def claims_page(studies: Mapping[str, Sequence[Summary]], scales: Mapping[str, str]) -> str:
    """The page in Markdown; made from stored runs alone.

    Args:
        studies: name -> its cells.
        scales: name -> the scale and the data it was done at and how many runs it has, in words.
    """
    lines = ["# The report's questions against our runs", "", "Made by `regrow report` from the stored runs alone.", ""]
    for question, verdicts in judge(studies.values()).items():
        lines += [f"## {question}", "", *HEAD]
        lines += [
            f"| {verdict.claim.text} | **{verdict.word}** | {in_markdown(verdict.figures)} |" for verdict in verdicts
        ]
        lines.append("")
    text, word, figures = time_row(studies.values())
    lines += ["## Time against FLOPs", "", *HEAD, f"| {text} | **{word}** | {in_markdown(figures)} |", ""]
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
