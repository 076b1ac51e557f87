"""Runs pytest on a build of the engine with AddressSanitizer and UndefinedBehaviorSanitizer: see `make sanitize`.

``LD_PRELOAD="libasan.so libubsan.so libstdc++.so" python tests/support/sanitized.py build/sanitize tests/compaction``
"""

import shutil
import sys
from pathlib import Path


def main(build: Path, arguments: list[str]) -> int:
    """Make the package importable with the engine of ``build`` in place of the installed one, and test it."""
    package = build / "package"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(Path(__file__).parents[2] / "src", package, ignore=shutil.ignore_patterns("csrc", "__pycache__"))
    for library in build.glob("_engine.*.so"):
        shutil.copy(library, package / "regrow" / "compaction")
    # An editable installation answers imports before sys.path is asked.
    sys.meta_path = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
    sys.path.insert(0, str(package))

    import pytest

    from regrow.engine import native

    assert Path(native.extension().__file__).is_relative_to(build), f"{native.extension().__file__} is not in {build}"
    return pytest.main(["-p", "no:cacheprovider", *arguments])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
