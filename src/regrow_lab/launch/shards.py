"""A study in parts: for schedulers that the lab does not know, and for the array jobs of the one that it knows."""

from __future__ import annotations

from collections.abc import Sequence

from regrow_lab.config import RunConfig


def deal(runs: Sequence[RunConfig], parts: int) -> list[list[RunConfig]]:
    """`runs` in `parts` parts, dealt out like cards, so that each has long and short ones; some may be empty.

    A run and the run that it starts from are in one part: nobody waits for another part, and nothing is trained twice.

    >>> runs = [RunConfig(seed=0), RunConfig(method="pruning", sparsity=0.9), RunConfig(method="lottery", sparsity=0.9)]
    >>> [[run.method for run in part] for part in deal(runs, 2)]
    [['dense'], ['pruning', 'lottery']]
    """
    chains: dict[str, list[RunConfig]] = {}
    for run in runs:
        chains.setdefault(_root(run).run_id, []).append(run)
    dealt: list[list[RunConfig]] = [[] for _ in range(parts)]
    for number, chain in enumerate(chains.values()):
        dealt[number % parts] += chain
    return dealt


def shard(runs: Sequence[RunConfig], part: str) -> list[RunConfig]:
    """Part i of n of `runs`, where `part` is "i/n" with i from 1.

    The parts are the same wherever they are taken, so n machines that take one each do the whole.

    Raises ValueError for anything else.
    """
    number, slash, of = part.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ValueError(f"a shard is i/n with i from 1 to n, such as 1/4, given {part!r}")
    return deal(runs, int(of))[int(number) - 1]


def _root(run: RunConfig) -> RunConfig:
    while run.prerequisite is not None:
        run = run.prerequisite
    return run
