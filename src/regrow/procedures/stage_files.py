"""Outputs of a procedure's stages on disk: a stage whose output exists is not run again."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from regrow.checksummed_files import seal, unpack, unseal
from regrow_files import open_file

SCHEMA = 2  # files of the first had no checksum
KIND = "stage"
T = TypeVar("T")


@dataclass(frozen=True)
class StageFolder:
    """A file a stage, and the settings that every one of them was made with.

    Attributes:
        path: the folder.
        settings: what a file must have been made with.
        suffix: of the files' names, where each of several ranks has its own.
        everywhere: whether something holds on all of these ranks.
    """

    path: Path
    settings: Mapping[str, Any]
    suffix: str = ""
    everywhere: Callable[[bool], bool] = bool

    def file(self, name: str) -> Path:
        """Where a stage's output is, or will be."""
        return self.path / f"{name}{self.suffix}.pt"

    def load(self, name: str) -> dict[str, Any] | None:
        """What the stage gave; None if it has not run, on any rank: one that stops may have written and others not."""
        file = self.file(name)
        return self._read(file) if self.everywhere(file.exists()) else None

    def save(self, name: str, output: Mapping[str, Any]) -> None:
        """Written whole or not at all, and only if it can be read again."""
        self.path.mkdir(parents=True, exist_ok=True)
        unfinished = self.path / f"{name}{self.suffix}.{os.getpid()}.tmp"
        try:
            with unfinished.open("wb") as file:
                seal(file, KIND, SCHEMA, {"settings": self.settings, "output": output})
            self._read(unfinished)
            unfinished.replace(self.file(name))
        finally:
            unfinished.unlink(missing_ok=True)

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            found = _first_schema(file) or unseal(file, KIND, SCHEMA)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{error}: delete it to train the level anew; states of others= must be tensors and plain values"
            ) from error
        settings, output = found.get("settings"), found.get("output")
        if not isinstance(settings, dict) or not isinstance(output, dict):
            raise ValueError(f"{file} holds no settings or no output: delete it to train the level anew")
        changed = [key for key, value in self.settings.items() if settings.get(key) != value]
        if changed:
            what, here = settings.get(changed[0]), self.settings[changed[0]]
            raise ValueError(f"{file} was written with {changed[0]} {what}, here it is {here}: take another folder")
        return output


def _first_schema(file: Path) -> dict[str, Any] | None:
    """What lies in a file of the first schema, as torch.save alone wrote it; None in another."""
    with open_file(file) as content:
        if content.read(2) != b"PK":
            return None
        packed = b"PK" + content.read()
    output = unpack(file, packed)
    version, settings = output.pop("version", None), output.pop("settings", None)
    if version != 1:
        raise ValueError(f"{file} is damaged: its version is {version!r}")
    return {"settings": settings, "output": output}


def once(
    store: StageFolder | None, name: str, make: Callable[[], dict[str, Any]], take_up: Callable[[Mapping[str, Any]], T]
) -> T:
    """What ``take_up`` makes of the folder's output, else of what ``make`` returns, which it holds from then on.

    Raises:
        ValueError: the file is damaged, of another procedure, or cannot be taken up.
    """
    found = store.load(name) if store else None
    if store is None or found is None:
        made = make()
        if store:
            store.save(name, made)
        return take_up(made)
    try:
        return take_up(found)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{store.file(name)} cannot be taken up ({reason}): delete it to train the level anew"
        ) from error
