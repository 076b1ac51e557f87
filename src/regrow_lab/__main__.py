"""`python -m regrow_lab` is `regrow`."""

import sys

from regrow_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
