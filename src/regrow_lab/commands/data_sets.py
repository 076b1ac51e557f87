"""`regrow data`: what data sets there are, and downloads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from regrow_files import shown
from regrow_lab.launch.progress import bytes_bar
from regrow_lab.store.escaping import one_line


@dataclass(frozen=True)
class Fetch:
    """Download a data set, after you asked for it here; one that broke off goes on, and its checksum is checked."""

    name: tyro.conf.Positional[str]
    """The data set: cifar10, cifar100, mnist or fashion-mnist."""
    to: Path | None = None
    """Folder of all data. By default $REGROW_DATA, else ~/data."""

    def run(self) -> int:
        """Fetch every file of it."""
        from regrow_lab.data.fetch import fetch
        from regrow_lab.data.sets import IMAGE_SETS
        from regrow_lab.data.source import data_root

        offered = {name: known.downloads for name, known in IMAGE_SETS.items() if known.downloads}
        if self.name not in offered:
            raise ValueError(f"there is no download of {self.name!r}: choose one of {', '.join(offered)}")
        root = data_root() if self.to is None else self.to
        for download in offered[self.name]:
            with bytes_bar(Console(), download.name) as progress:
                path = fetch(download, root, progress)
            print(f"{shown(path)}: checksum right")
        return 0


@dataclass(frozen=True)
class List:
    """Say which data sets there are, and where those lie that are on this machine."""

    def run(self) -> int:
        """Print a line a data set."""
        from regrow_lab.data import TINY_SHAKESPEARE
        from regrow_lab.data.sets import IMAGE_SETS
        from regrow_lab.data.source import data_root

        root = data_root()
        print(f"{'digits':<16} {'with scikit-learn':<24} always there")
        for name, known in IMAGE_SETS.items():
            try:
                source = known.find(root)
                where = f"{source.what} in {source.folder}"
            except ValueError as error:
                where = "not there" if " is not in " in str(error) else str(error)
            print(f"{name:<16} {known.title:<24} {one_line(where)}")
        there = any((root / f"{TINY_SHAKESPEARE}{ending}").exists() for ending in (".txt", "/input.txt"))
        print(f"{TINY_SHAKESPEARE:<16} {'text, bytes':<24} {f'in {shown(root)}' if there else 'not there'}")
        print(f"Any image folder or .txt file in {shown(root)} is one too, by its name.")
        return 0


@dataclass(frozen=True)
class Data:
    """Data sets: what there is, and downloads."""

    action: Annotated[
        Annotated[Fetch, tyro.conf.subcommand("fetch")] | Annotated[List, tyro.conf.subcommand("list")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> int:
        """Do it."""
        return self.action.run()
