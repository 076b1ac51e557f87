"""Text that may stand anywhere, as it is put on a terminal, into Markdown and CSV, and into the name of a file."""

from __future__ import annotations

import hashlib
import re
import sys
from urllib.parse import quote

from regrow_files import shown

MARKUP = re.compile(r"[\\`*<>\[\]|~$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")
"""What Markdown takes for more than itself, HTML and addresses in it too. An underscore inside a word is one."""
ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
LONGEST_NAME = 120
FORMULA = re.compile(r"[=@\t]|[+-](?![\d.])")
"""How a cell begins that a spreadsheet would calculate."""


def one_line(text: object) -> str:
    """Text of any kind in one line of a terminal.

    >>> one_line("lost\\n  at \\x1b[31msea")
    'lost at \\\\x1b[31msea'
    """
    return shown(" ".join(str(text).split()))


def complain(text: object) -> None:
    """Says in a line of the error output what went wrong."""
    print(f"regrow: {one_line(text)}", file=sys.stderr)


def in_markdown(text: str) -> str:
    """Text that Markdown shows as it is.

    >>> in_markdown("RigL_2x (ERK), x=<img src=//x>")
    'RigL_2x (ERK), x=&lt;img src=//x&gt;'
    """
    return MARKUP.sub(lambda found: ENTITIES.get(found[0], f"\\{found[0]}"), shown(text))


def in_csv(text: str) -> str:
    """Text that a spreadsheet shows as it is, and does not calculate.

    >>> in_csv("=1+1"), in_csv("-0.3")
    ("'=1+1", '-0.3')
    """
    return f"'{text}" if FORMULA.match(text) else text


def file_name(text: str) -> str:
    """Text as a part of a file's name: no two become one, and none leads to another folder.

    >>> file_name("wrn-10-1-../x")
    'wrn-10-1-..%2Fx'
    """
    name = quote(text, safe=" +=,")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
