"""The tree in CONTRIBUTING.md, from the first lines of the modules' docstrings; run as a program it is written there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = ROOT / "CONTRIBUTING.md"
BEGIN: Final = "<!-- the tree, written by tests/support/source_tree.py -->\n```\n"
END: Final = "```\n<!-- end of the tree -->"
PACKAGES: Final = (
    "contract/sf_contract", "model/sf_model", "export/sf_export", "edge_runtime/sf_edge", "server_trainer/sf_server",
    "benchmarks/sf_bench", "examples/quickstart",
)  # fmt: skip
_COLUMN: Final = 24


def source_tree() -> str:
    """One line per package and module: its name, and what it is for."""
    return "\n".join(line for package in PACKAGES for line in (*_lines(ROOT / package, package, ""), ""))


def with_tree(document: str) -> str:
    """The document with the tree of now."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{source_tree()}{END}{after}"


def _lines(folder: Path, name: str, indent: str) -> Iterator[str]:
    about = folder / "__init__.py"
    yield _line(f"{indent}{name}/", _first_line(about) if about.exists() else "")
    inside = indent + "  "
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.name != "__init__.py":
            yield _line(f"{inside}{path.name}", _first_line(path))
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            yield from _lines(path, path.name, inside)


def _line(name: str, about: str) -> str:
    return f"{name:<{_COLUMN}} {about}".rstrip()


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    DOCUMENT.write_text(with_tree(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
