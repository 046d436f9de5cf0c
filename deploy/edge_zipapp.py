"""Writes `dist/sf-edge.pyz`: `sf-edge` as one file, for a Python that has the packages of requirements-edge.txt.

    python deploy/edge_zipapp.py [--out FILE]

Inside are this project's own packages, which are pure Python. NumPy, ONNX Runtime and the others are compiled, and Python
cannot import compiled modules from a zip file; they come from requirements-edge.txt. The same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = (ROOT / "contract" / "sf_contract", ROOT / "edge_runtime" / "sf_edge")
OUT: Final = ROOT / "dist" / "sf-edge.pyz"
_SHEBANG: Final = b"#!/usr/bin/env python3\n"
_MAIN: Final = "import sys\nfrom sf_edge.main import main\nsys.exit(main())\n"
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o644 << 16


def build(packages: Iterable[Path]) -> bytes:
    """The whole file: names in order, no times, no bytecode, permissions the same everywhere."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in [("__main__.py", _MAIN.encode()), *_sources(packages)]:
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, _MODE, 3
            archive.writestr(entry, content)
    return _SHEBANG + written.getvalue()


def _sources(packages: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    for package in packages:
        for file in sorted(package.rglob("*.py")):
            yield file.relative_to(package.parent).as_posix(), file.read_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="default: dist/sf-edge.pyz")
    out: Path = parser.parse_args(argv).out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(build(PACKAGES))
    out.chmod(0o755)
    print(f"{out}: {out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
