"""`regrow report`, and what every command prints of a folder of runs."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from regrow_files import shown
from regrow_lab.store import folders
from regrow_lab.store.escaping import complain


@dataclass(frozen=True)
class Report:
    """Rebuild the tables and figures of a folder of runs from what is stored in it; of a folder of studies those of
    each, and claims.md: the report's questions against what the runs show."""

    directory: tyro.conf.Positional[Path]
    """Folder that `regrow study` or `regrow train` wrote, or a folder of several studies."""
    pack: bool = False
    """Then put the finished runs into one file, runs.jsonl (runs.jsonl.gz where it is large), in place of their
    folders. Reports and studies read it as they read the folders."""

    def run(self) -> int:
        """Write the report and print its table."""
        print_report(self.directory)
        for folder in (folders.study_folders(self.directory) or [self.directory]) if self.pack else ():
            print(shown(folders.pack(folder).in_words))
        return 0


def print_report(directory: Path) -> None:
    """Write and print the report of a folder of runs; of a folder of studies each one's, and the page of claims."""
    from regrow_lab.commands.tune.search_report import is_search, write_tuning_report
    from regrow_lab.studies.reports import report_folder

    studies = folders.study_folders(directory)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for folder in studies or [directory]:
        try:
            print(write_tuning_report(folder, width) if is_search(folder) else report_folder(folder))
            print(f"report: {shown(folder / 'report')}")
        except ValueError as error:
            if not studies:
                raise
            complain(error)
    if studies:
        print_claims(directory)


def print_claims(directory: Path) -> None:
    """Write the page of claims of a folder of studies, and say where it is."""
    from regrow_lab.studies.reports import write_claims

    print(f"claims: {shown(write_claims(directory))}")
