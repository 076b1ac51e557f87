"""`python -m regrow_lab` is `regrow`."""

import signal
import sys


def main() -> int:
    """The command line; Ctrl-C while it starts or ends is no error that needs a traceback."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from regrow_lab import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
