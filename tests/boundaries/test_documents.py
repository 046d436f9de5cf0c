"""Documents that list things list all of them."""

from __future__ import annotations

from pathlib import Path

from sf_contract import errors
from sf_contract.errors import SplitFrozenError
from support.source_tree import source_tree, with_tree

ROOT = Path(__file__).parents[2]


def test_contributing_shows_the_tree_as_it_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert text == with_tree(text), "run: python tests/support/source_tree.py"


def test_every_module_says_what_it_is_for():
    assert [line for line in source_tree().splitlines() if line.endswith(".py")] == []


def test_operations_explains_every_exit_code():
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SplitFrozenError)]
    codes = {kind.exit_code for kind in kinds if kind is not SplitFrozenError}
    assert len(codes) == len(kinds) - 1, "two kinds of failure share a code"
    assert [code for code in sorted(codes) if f"\n| {code} |" not in text] == []
