"""The numbers of one column of a table: one unit, one number of decimals."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"
UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))


def decimals(values: Sequence[float], digits: int, least: int, most: int) -> int:
    """Decimals that show so many `digits` of the smallest of a column's values, within `least` and `most`.

    >>> decimals([98.4, 0.64], 2, 0, 3), decimals([0.1, 0.00999999], 2, 2, 4), decimals([], 2, 1, 3)
    (2, 3, 1)
    """
    sizes = [float(f"{abs(value):.{digits}g}") for value in values if value and math.isfinite(value)]
    wanted = [digits - 1 - math.floor(math.log10(size)) for size in sizes]
    return min(max([least, *wanted]), most)


def aligned(
    values: Sequence[float | None], digits: int = 2, least: int = 0, most: int = 4, *, after: str = ""
) -> list[str]:
    """The texts of a column; what would be nothing but zeros is written as a power of ten.

    >>> aligned([1.2345, 0.0512, None, 1.2e-6], after="x")
    ['1.2345x', '0.0512x', '–', '1.2e-06x']
    >>> aligned([1600.4, 31.6], most=1)
    ['1,600', '32']
    """
    places = decimals([value for value in values if value is not None], digits, least, most)

    def text(value: float) -> str:
        plain = f"{value:,.{places}f}"
        return plain if float(plain.replace(",", "")) or not value else f"{value:.{digits}g}"

    return [MISSING if value is None else text(value) + after for value in values]


def unit_of(seconds: Sequence[float]) -> tuple[int, str]:
    """The unit of a column of times, in seconds, and its name: the largest of which the longest is two or more.

    >>> unit_of([3, 7300]), unit_of([0.4, 90]), unit_of([])
    ((3600, 'hours'), (1, 'seconds'), (1, 'seconds'))
    """
    return next((unit, name) for unit, name in UNITS if max(seconds, default=0) >= 2 * unit or unit == 1)


def times(seconds: Sequence[float | None]) -> tuple[str, list[str]]:
    """The unit of a column of times, and its texts.

    >>> times([0.64, 1.1]), times([7300.0, None, 600.0])
    (('seconds', ['0.64', '1.10']), ('hours', ['2.03', '–', '0.17']))
    """
    unit, name = unit_of([value for value in seconds if value is not None])
    return name, aligned([None if value is None else value / unit for value in seconds], most=2)
