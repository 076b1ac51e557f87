"""torchrun, ending with whoever started it: `python -m regrow_lab.launch.agent ...` for `torchrun ...`.

Its standard input is a pipe that nothing is written to. It closes when the starter closes it, or dies in whatever way;
torchrun then has its processes write their checkpoints and end, and kills those that take too long.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> None:
    """Start the processes and see to them."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    from torch.distributed.run import main as torchrun

    torchrun()


def _end_with_starter() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
