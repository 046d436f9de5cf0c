"""Documents that list things list all of them."""

from __future__ import annotations

from pathlib import Path

from sf_contract import errors
from sf_contract.errors import SplitFrozenError

ROOT = Path(__file__).parents[2]


def test_contributing_names_every_source_file():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sources = [*ROOT.glob("*/sf_*/*.py"), *ROOT.glob("examples/*/*.py")]
    missing = [file.name for file in sources if file.name != "__init__.py" and f"  {file.name} " not in text]
    assert missing == []


def test_operations_explains_every_exit_code():
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SplitFrozenError)]
    codes = {kind.exit_code for kind in kinds if kind is not SplitFrozenError}
    assert len(codes) == len(kinds) - 1, "two kinds of failure share a code"
    assert [code for code in sorted(codes) if f"\n| {code} |" not in text] == []
