"""What the accuracy comparison says, made from results written by hand."""

from __future__ import annotations

import msgspec
import pytest

from sf_bench.accuracy.report import Report, as_text, pairs_of, summarize_arm
from sf_bench.accuracy.results import FP32, Cell, CellKey, RowError
from sf_bench.quality.cells import cell_path, claim, read_cell
from sf_bench.quality.phrases import PoolCounts
from sf_bench.quality.results import Evaluation
from sf_contract.errors import MismatchError, StoreError
from sf_server.run_folder import RunFolder, write_atomically

KEY = CellKey(rows=FP32, base_weights_sha256="0" * 64, split_layer=4, inputs_sha256="1" * 64, training={"epochs": 1})


def _cell(arm: str, seed: int, *, own: str, whole: str | None = None) -> Cell:
    def evaluation(marks: str) -> Evaluation:
        return Evaluation(hits=tuple(mark == "+" for mark in marks), loss=0.5)

    return Cell(
        key=KEY,
        arm=arm,
        seed=seed,
        wire="int8",
        bytes_per_token=612.0,
        row_error=None if arm == FP32 else RowError(mean=0.031, p99=0.07),
        own=evaluation(own),
        whole=evaluation(whole or own),
        steps=10,
        tokens=100,
        cpu_s=1.0,
    )


@pytest.fixture
def cells() -> dict[str, list[Cell]]:
    return {
        FP32: [_cell(FP32, 0, own="++++"), _cell(FP32, 1, own="+++-")],
        "int8": [_cell("int8", 0, own="+++-", whole="++++"), _cell("int8", 1, own="+++-")],
        "int4": [_cell("int4", 0, own="++--"), _cell("int4", 1, own="++++")],
    }


def test_bundles_are_compared_with_fp32_and_further_bundles_with_the_first(cells):
    pairs = {(pair.arm, pair.reference): pair for pair in pairs_of(cells)}
    assert list(pairs) == [("int8", FP32), ("int4", FP32), ("int4", "int8")]
    assert pairs["int8", FP32].own.by_seed == (-25.0, 0.0)
    assert pairs["int8", FP32].whole.by_seed == (0.0, 0.0)
    assert pairs["int4", "int8"].own.by_seed == (-25.0, 25.0)


def test_without_the_fp32_arm_bundles_are_still_compared_with_one_another(cells):
    del cells[FP32]
    assert [(pair.arm, pair.reference) for pair in pairs_of(cells)] == [("int4", "int8")]


def test_a_pair_without_both_judgements_on_fp32_rows_is_compared_on_its_own_rows_only(cells):
    cells["int8"][1] = msgspec.structs.replace(cells["int8"][1], whole=None)
    pairs = {(pair.arm, pair.reference): pair for pair in pairs_of(cells)}
    assert pairs["int8", FP32].whole is None
    assert pairs["int8", FP32].own.by_seed == (-25.0, 0.0)
    assert pairs["int4", FP32].whole is not None
    assert summarize_arm(cells["int8"]).whole is None


def test_the_text_shows_every_arm_its_bytes_and_every_difference_with_its_intervals(cells):
    report = Report(
        samples=4000,
        seeds=(0, 1),
        epochs=1,
        tokens=(36_000, 36_100),
        validation=4,
        floor=0.5,
        pool=PoolCounts(rows=9, unusable=1, repeated=1, in_validation=1, too_long=1, left=5),
        arms=tuple(summarize_arm(of_arm) for of_arm in cells.values()),
        pairs=pairs_of(cells),
    )
    text = as_text(report)
    assert "100.00%, 75.00%, mean 87.50%" in text
    assert "612.0" in text
    assert "3.10% / 7.00%" in text
    assert "-25.00, +0.00, mean -12.50" in text
    assert "(n 4)" in text
    assert "(n 2)" in text
    assert "int4 - int8" in text
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    cell = _cell("int8", 0, own="+-")
    path = cell_path(tmp_path, "int8", 0)
    assert read_cell(path, KEY, Cell) is None
    write_atomically(path, msgspec.json.encode(cell))
    assert read_cell(path, KEY, Cell) == cell


def test_a_result_of_other_inputs_is_never_taken_for_this_one(tmp_path):
    path = cell_path(tmp_path, "int8", 0)
    write_atomically(path, msgspec.json.encode(_cell("int8", 0, own="+-")))
    other = msgspec.structs.replace(KEY, inputs_sha256="2" * 64, training={"epochs": 2})
    with pytest.raises(MismatchError, match="inputs_sha256, training"):
        read_cell(path, other, Cell)


def test_a_half_finished_cell_is_never_finished_as_another_one(tmp_path):
    folder = RunFolder(tmp_path)
    claim(folder, KEY)
    claim(folder, KEY)
    with pytest.raises(MismatchError, match="split_layer"):
        claim(folder, msgspec.structs.replace(KEY, split_layer=5))


def test_a_damaged_result_is_named_and_not_believed(tmp_path):
    path = cell_path(tmp_path, "int8", 0)
    path.write_bytes(b'{"accuracy": 1.0}')
    with pytest.raises(StoreError, match="int8-seed0"):
        read_cell(path, KEY, Cell)
