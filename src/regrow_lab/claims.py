"""The report's four questions against stored runs: what holds, what does not, what was not tested, and by how much.

A claim compares cells of the studies that are alike in all but what it is about. A cell counts only with two finished
seeds or more on both sides; its difference counts where Welch's t-test puts it beyond noise at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from regrow_lab.pairs import COLLAPSED, Finder, Key, Pair, equal_flops, tuned, versus
from regrow_lab.summary import Summary


@dataclass(frozen=True)
class Claim:
    """A sentence of the report, which pairs of cells it speaks of, and whether it says `above` or `no worse`."""

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
        """holds, does not hold, not shown, or not tested.

        above: some cells beyond the noise for it, and more than against it; not shown where all are within the noise.
        no worse: fewer than one cell in ten is beyond the noise against it.
        """
        if not self.pairs:
            return "not tested"
        ahead, behind = self.count(1), self.count(-1)
        holds = behind <= len(self.pairs) / 10 if self.claim.says == "no worse" else ahead > behind and ahead > 0
        if self.claim.says == "above" and behind > len(self.pairs) / 4:
            holds = False
        if self.claim.says == "above" and not ahead and not behind:
            return "not shown"
        return "holds" if holds else "does not hold"

    def count(self, sign: int) -> int:
        """Cells with that sign."""
        return sum(pair.sign == sign for pair in self.pairs)

    @property
    def figures(self) -> str:
        """The counts and the mean difference in words."""
        if not self.pairs:
            return "no stored runs that could tell"
        mean = math.fsum(pair.difference for pair in self.pairs) / len(self.pairs)
        widest = max(self.pairs, key=lambda pair: abs(pair.difference))
        return (
            f"{self.count(1)} of {len(self.pairs)} cells above beyond noise, {self.count(-1)} below, "
            f"{self.count(0)} within; mean difference {mean:+.2f} points, widest {widest.difference:+.1f} "
            f"({widest.where})"
        )


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
    ),
    "2. Is RigL sensitive to its two hyperparameters, or to the learning rate?": (
        Claim("alpha = .3 with the reference dT is no worse than the best of those tried",
              tuned("drop_fraction", lambda fields: fields.get("drop_fraction") == "0.3"), "no worse"),
        Claim("learning rates .1 and .05 are no worse than the best of those tried",
              tuned("learning_rate", lambda fields: fields.get("learning_rate") in ("0.1", "0.05")), "no worse"),
    ),
    "3. How does the sparsity distribution matter at fixed parameters, and at fixed FLOPs?": (
        Claim("at fixed parameters ERK is above uniform",
              versus(_keys("rigl", "erk") + _keys("set", "erk") + _keys("static", "erk"),
                     _keys("rigl", "uniform") + _keys("set", "uniform") + _keys("static", "uniform"),
                     same_method=True)),
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
        Claim("an IMP ticket is above its shuffled masks",
              versus(_keys("imp", variant="rewind=0.0"), _keys("imp", variant="rewind=0.0, start=shuffled"))),
    ),
}  # fmt: skip
"""Question -> its claims."""


def judge(studies: Iterable[Sequence[Summary]]) -> dict[str, list[Verdict]]:
    """Every claim against the cells of all `studies`; cells are compared within a study alone."""
    each = [list(cells) for cells in studies]
    return {
        question: [Verdict(claim, _distinct(pair for cells in each for pair in claim.find(cells))) for claim in claims]
        for question, claims in QUESTIONS.items()
    }


def _distinct(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Without the cells that two studies hold alike."""
    return tuple({(pair.where, pair.one.mean, pair.other.mean): pair for pair in pairs}.values())


def claims_page(studies: Mapping[str, Sequence[Summary]], scales: Mapping[str, str]) -> str:
    """The page in Markdown; made from stored runs alone.

    Args:
        studies: name -> its cells.
        scales: name -> the scale and the data it was done at, in words.
    """
    lines = ["# The report's questions against our runs", "", "Made by `regrow report` from the stored runs alone.", ""]
    for question, verdicts in judge(studies.values()).items():
        lines += [f"## {question}", "", "| Claim | Our runs | Figures |", "| --- | --- | --- |"]
        lines += [f"| {verdict.claim.text} | **{verdict.word}** | {verdict.figures} |" for verdict in verdicts]
        lines.append("")
    lines += [
        "## How it is judged",
        "",
        "A cell is one method at one sparsity, over its seeds. Two cells differ beyond noise where Welch's t-test says "
        'so at 5 %. "Above" (or "below", "worse") holds where more cells are on its side than against it, and at most '
        'a quarter are against it; it is not shown where every cell is within noise. "No worse" holds where at most a '
        "tenth are below, which is also what runs too noisy to tell would give: mind the number within. Cells with "
        "fewer than two finished seeds, and those under "
        f"{COLLAPSED:.0%} of the dense accuracy, are left out. Some one cell in twenty goes beyond noise by chance.",
        "",
        "## What the runs are",
        "",
        *(
            f"- {name}: {scales[name]}, {sum(cell.n for cell in cells)} finished runs"
            for name, cells in studies.items()
        ),
    ]
    return "\n".join(lines) + "\n"
