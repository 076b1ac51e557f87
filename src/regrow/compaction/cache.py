"""What was measured on this machine, kept in files: one for each subject, CPU, engine, torch and number of threads."""

import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from regrow.compaction import native

VARIABLE = "REGROW_CACHE"
"""Environment variable: the folder; by default regrow in the user's cache folder."""


def path_of(subject: str, *parts: object) -> Path:
    """The file of a subject that is described by ``parts``, on this machine."""
    library = Path(str(native.extension().__file__)).stat()
    machine = [_cpu(), native.instruction_set(), torch.__version__, torch.get_num_threads()]
    key = repr([*machine, library.st_size, *parts, int(library.st_mtime)])
    return _folder() / f"{subject}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.json"


def read(path: Path) -> Any:
    """What a file holds; None where there is none, or not a sound one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def write(path: Path, found: Any) -> None:
    """Keeps it; in a folder that cannot be written to, it is measured again by the next process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(found, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        return


def _folder() -> Path:
    base = os.environ.get(VARIABLE)
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regrow"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith("model name")), platform.machine())
