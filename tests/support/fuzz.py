"""Coverage-guided fuzzing of every door (tests/support/doors.py) with atheris, which needs Linux and Python ≤ 3.13.

    python tests/support/fuzz.py [--runs 20000] [--seconds 60] [DOOR ...]

A process a door. Prints a JSON object, door → files tried; exits 1 with the file that broke one, kept in the folder.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def fuzz_one(name: str, runs: int, seconds: int, folder: Path) -> None:
    """Never returns: atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=["regrow", "regrow_lab"]):
        from doors import DOORS
    door = DOORS[name]
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    (corpus / "good").write_bytes(door.good())

    def once(content: bytes) -> None:
        with contextlib.suppress(ValueError):
            door.read(content)

    limits = [f"-runs={runs}", f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-timeout=20", "-max_len=400000"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(corpus)], once)
    atheris.Fuzz()


def main() -> int:
    """Every door in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("doors", nargs="*")
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=60, help="at most, a door")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    if options.inside:
        fuzz_one(options.doors[0], options.runs, options.seconds, Path(options.inside))
    from doors import DOORS

    tried, broken = {}, 0
    for name in options.doors or DOORS:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        command = [sys.executable, __file__, name, f"--runs={options.runs}", f"--seconds={options.seconds}"]
        done = subprocess.run([*command, f"--inside={folder}"], capture_output=True, text=True, check=False)
        found = re.findall(r"^(?:Done |#)(\d+)", done.stderr, re.MULTILINE)
        tried[name] = max(map(int, found), default=0)
        if done.returncode or not tried[name]:
            broken += 1
            print(f"{name}: {folder}\n{done.stderr[-3000:]}", file=sys.stderr)
    print(json.dumps(tried, indent=1))
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
