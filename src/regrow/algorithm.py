"""The record that every method is."""

from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import or_
from typing import Literal

from regrow.parts.distributions import Distribution, check_sparsity, erk
from regrow.parts.patterns import Pattern, unstructured
from regrow.parts.schedules import Constant, Cubic, Never, Schedule, Trigger
from regrow.parts.scores import Need, Score, magnitude

nothing = Constant(0.0)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A sparse training method: orthogonal parts, changed one at a time with ``dataclasses.replace``.

    Attributes:
        name: what tables call it.
        sparsity: global share of zeros, in [0, 1): a number or a schedule over weight steps.
        distribute: shares the budget among layers.
        initial: who lives at the start; None: every weight does (pruning, SNIP).
        when: at which weight steps the topology is updated.
        drop: alive weights with the smallest value go.
        grow: dead weights with the largest value come; None: nothing grows.
        fraction: share of a layer's alive weights that an update replaces.
        redistribute: freed weights go to layers in proportion to this score's mean over alive weights; None: each
            layer keeps its number.
        pattern: the unit that lives and dies.
        scope: whether a budget that changes is shared by ``distribute`` ("layer") or by one threshold over all layers
            ("global"): on the drop score of the alive where it shrinks, on the growth score of the dead where it grows.
        step_on_update: True: the weight step is taken, then the topology is updated; False: the update takes the place
            of the weight step (RigL, SNIP).
    """

    name: str
    sparsity: Schedule | float
    distribute: Distribution = erk
    initial: Score | None
    when: Trigger = field(default_factory=Never)
    drop: Score = magnitude
    grow: Score | None = None
    fraction: Schedule = nothing
    redistribute: Score | None = None
    pattern: Pattern = unstructured
    scope: Literal["layer", "global"] = "layer"
    step_on_update: bool = True

    def __post_init__(self) -> None:
        if not callable(self.sparsity):
            object.__setattr__(self, "sparsity", Constant(check_sparsity(self.sparsity)))
        if not callable(self.distribute):
            raise ValueError(
                f"distribution is {self.distribute!r}; expected regrow.uniform, regrow.er, regrow.erk, or a dict of "
                "glob → sparsity"
            )
        if self.scope not in ("layer", "global"):
            raise ValueError(f"scope is {self.scope!r}; expected 'layer' or 'global'")
        if self.pattern.group is not None and (self.scope == "global" or self.redistribute is not None):
            what = "scope='global'" if self.scope == "global" else "a redistribution"
            raise ValueError(
                f"{what} gives a layer any number of alive weights, and the pattern '{self.pattern.name}' needs one "
                "that its groups can share: take scope='layer' and redistribute=None"
            )

    def sparsity_at(self, step: int) -> float:
        """The global target after ``step`` weight steps."""
        assert callable(self.sparsity)
        return self.sparsity(step)

    @property
    def keeps_its_number(self) -> bool:
        """Whether there are as many alive weights at every step as at the first."""
        return isinstance(self.sparsity, Constant) and self.initial is not None

    @property
    def keeps_each_number(self) -> bool:
        """Whether each layer has as many alive weights at every step as at the first."""
        return self.keeps_its_number and self.redistribute is None

    @cached_property
    def final_sparsity(self) -> float | None:
        """The global target in the end, that of the last update; None where a schedule cannot say it beforehand.

        >>> import regrow
        >>> from dataclasses import replace
        >>> pruning = regrow.gradual_pruning(sparsity=0.9, total_steps=100, every=10, start=0)
        >>> replace(pruning, sparsity=lambda step: step / 100).final_sparsity
        0.7
        """
        try:
            return float(self.sparsity_at(self.when.last or 0))
        except Exception:  # one of the user's own may not know the future, and is asked again when it comes
            return None

    @property
    def never_falls(self) -> bool:
        """Whether the sparsity is known never to fall; a function of the user's own may."""
        return isinstance(self.sparsity, (Constant, Cubic))

    @cached_property  # asked for at every step
    def needs(self) -> Need:
        """Everything that the scores of an update look at."""
        scores = (self.drop, self.grow, self.redistribute)
        return reduce(or_, (score.needs for score in scores if score is not None), Need.NOTHING)
