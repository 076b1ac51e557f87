"""Docstrings as Markdown: doctests become blocks, roles (:func:`regrow.rigl`) become names. An extension of griffe."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?m)^((?:>>> .*\n?)(?:.+\n?)*)")
ROLE = re.compile(r":(?:func|class|data|meth|mod|attr):`~?([^`]+)`")


class Markdown(griffe.Extension):
    """Rewrites the docstring of each object that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Every object, once."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The docstring, for a reader of Markdown.

    >>> print(as_markdown("Twice; see :func:`once`.\\n\\n>>> 2 * 3\\n6"))
    Twice; see `once`.
    <BLANKLINE>
    ```pycon
    >>> 2 * 3
    6
    ```
    """
    text = ROLE.sub(r"`\1`", text)
    return DOCTEST.sub(lambda block: f"```pycon\n{block[0].rstrip()}\n```\n", text)
