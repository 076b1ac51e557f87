"""A PostgreSQL server for tests, from Debian's packages: in a folder of its own, as a user who is not root."""

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

PASSWORD = "secret"


def missing() -> str | None:
    """Why no server can be started here; None if it can."""
    if _programs() is None:
        return "needs PostgreSQL's initdb and pg_ctl (apt-get install postgresql)"
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        return "needs runuser, as PostgreSQL does not run as root"
    return None


def start(folder: Path) -> str:
    """Bring a server up with all its files in `folder`; returns the URL of its database."""
    programs = _programs()
    assert programs is not None
    folder.mkdir(parents=True, exist_ok=True)
    password = folder / "password"
    password.write_text(PASSWORD)
    if os.geteuid() == 0:
        for path in (folder, password):
            shutil.chown(path, "postgres", "postgres")
        for parent in folder.parents:  # pytest's folders are for their owner alone
            if parent.stat().st_uid == 0 and parent != Path("/") and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    _as_user([programs / "initdb", "-D", data, "-U", "regrow", "-A", "scram-sha-256", f"--pwfile={password}"])
    with (data / "postgresql.conf").open("a") as file:
        file.write(
            f"port={port}\nunix_socket_directories='{folder}'\nlisten_addresses='127.0.0.1'\nmax_connections=200\n"
        )
    start_again(folder)
    return f"postgresql://regrow:{PASSWORD}@127.0.0.1:{port}/postgres"


def start_again(folder: Path) -> None:
    """Bring up the server of `folder`, which was stopped."""
    programs = _programs()
    assert programs is not None
    _as_user([programs / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w", "start"])


def stop(folder: Path) -> None:
    """Tell the server of `folder` to end at once."""
    programs = _programs()
    assert programs is not None
    _as_user([programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop"])


def _as_user(command: Sequence[object]) -> None:
    before = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*before, *map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd="/")


def _programs() -> Path | None:
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "pg_ctl").exists() and (place / "initdb").exists()), None)
