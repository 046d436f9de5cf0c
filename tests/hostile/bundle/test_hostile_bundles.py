"""Every hostile bundle is refused: by our error, in one line, without opening a file outside, and without much memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from hostile.bundle import contents, folders, manifests, signatures
from hostile.bundle.attacks import ATTACKS, Attack
from hostile.bundle.conftest import Refusal, opened_files
from hostile.bundle.folders import SECRET
from sf_contract.bundle import open_bundle
from sf_contract.errors import BundleError
from sf_contract.front_end import open_front_end
from sf_contract.tokenizer import open_tokenizer
from support.tiny_bundle import GRAPH, TOKENIZER, VECTORS


def test_the_good_bundle_passes(folder: Path, verify: Callable[..., Refusal]) -> None:
    judged = verify(folder)
    assert judged.code == 0, judged.err
    assert "error 0.00%" in judged.out or "0.00% mean error" in judged.out


def test_every_module_of_attacks_is_used() -> None:
    modules = {attack.spoil.__module__ for attack in ATTACKS}
    assert modules == {module.__name__ for module in (contents, folders, manifests, signatures)}
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) > 80


@pytest.mark.timeout(120)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_hostile_bundle_is_refused(attack: Attack, folder: Path, verify: Callable[..., Refusal]) -> None:
    attack.spoil(folder)
    tracemalloc.start()
    try:
        with opened_files() as opened:
            judged = verify(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (judged.code, judged.out) == (attack.code, ""), judged.err
    assert attack.says in judged.err
    assert judged.err.count("\n") == 1, "one line"
    assert judged.err[:-1].isprintable()
    assert len(judged.err) < 3_000
    assert "Cure: " in judged.err
    assert "Traceback" not in judged.err
    assert not [path for path in opened if Path(path).name in (SECRET, "zero", contents.WORKING_FOLDER_FILE)]
    assert peak < attack.memory_bytes


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.parametrize("name", [GRAPH, TOKENIZER, VECTORS])
def test_a_file_exchanged_after_the_check_is_noticed(folder: Path, name: str, same_size: bool) -> None:
    """Between the check and the use lies time; what is used is hashed again as it is read."""
    bundle = open_bundle(folder)
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    (folder / name).unlink()
    (folder / name).write_bytes(changed if same_size else content * 2)
    uses = {GRAPH: open_front_end, TOKENIZER: open_tokenizer, VECTORS: type(bundle).self_test_rows}
    with pytest.raises(BundleError, match=name):
        uses[name](bundle)


def test_a_file_exchanged_after_loading_changes_nothing(folder: Path) -> None:
    """The front end holds what was hashed, and never goes back to the file."""
    front_end = open_front_end(open_bundle(folder))
    (before,) = front_end.run([[1, 2]])
    (folder / GRAPH).unlink()
    (after,) = front_end.run([[1, 2]])
    assert before.rows.tobytes() == after.rows.tobytes()
