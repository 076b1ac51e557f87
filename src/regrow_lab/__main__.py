"""`python -m regrow_lab` is `regrow`."""

import signal
import sys
from importlib.util import find_spec

PYTHON = (3, 11)
LAB = ("matplotlib", "numpy", "optuna", "pandas", "PIL", "rich", "scipy", "sklearn", "tyro")
"""What the extra `lab` installs, as it is imported."""


def main() -> int:
    """The command line; Ctrl-C while it starts or ends is no error that needs a traceback."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    lacking = _lacking()
    if lacking:
        print(f"regrow: {lacking}", file=sys.stderr)
        return 2
    from regrow_lab.commands import cli

    return cli.main()


def _lacking() -> str:
    """What this installation lacks to run the command, with the remedy; empty where it is whole."""
    if sys.version_info < PYTHON:
        found, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, PYTHON))
        return f"this is Python {found}, and regrow needs {needed} or newer: make an environment with one"
    missing = [name for name in LAB if find_spec(name) is None]
    if missing:
        return f"the command needs {', '.join(missing)}, not installed here: pip install 'regrow[lab]'"
    return ""


if __name__ == "__main__":
    sys.exit(main())
