"""What a user may give for a number, and what is said of anything else."""

import operator
from typing import Any


def whole_number(value: Any, what: str, expected: str, least: int = 0) -> int:
    """The value as an int, if it is a whole number of at least ``least``; of any integer type, but not 10.0 or True.

    Raises:
        ValueError: it is not.

    >>> whole_number(True, "every", "weight steps between two updates", least=1)
    Traceback (most recent call last):
    ValueError: every is True; expected weight steps between two updates, a whole number of at least 1
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{what} is {value!r}; expected {expected}, a whole number of at least {least}")
    return number


def real_number(value: Any, what: str, expected: str) -> float:
    """The value as a float, if it is a number of any type, but not text or True.

    Raises:
        ValueError: it is not.

    >>> real_number("0.9", "sparsity", "a share of zeros in [0, 1)")
    Traceback (most recent call last):
    ValueError: sparsity is '0.9'; expected a share of zeros in [0, 1)
    """
    if not isinstance(value, (str, bytes, bool)):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
            pass
    raise ValueError(f"{what} is {value!r}; expected {expected}")
