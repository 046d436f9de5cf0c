"""EMULATED ARM: what the instruction counter writes, how it is summed up, and how it is shown."""

from __future__ import annotations

import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from sf_bench.arm.counts import CLASSES, Counts, CountSummary, parse_marks, split_marks, summarize_counts
from sf_bench.arm.guest import SelfTest
from sf_bench.arm.kernels import cost_table, kernel_costs
from sf_bench.arm.measure import ArmResult, check_unchanged, failed_self_tests
from sf_bench.arm.report import as_json, as_table
from sf_bench.kernel_graphs import KERNELS
from sf_bench.kernels import Shape
from sf_contract.errors import MismatchError

SDOT, SMMLA, SMULL2, SMLAL_BY_ELEMENT = 0x4E829420, 0x4E82A420, 0x4E22C020, 0x0F422020
FMLA, FMLA_BY_ELEMENT, FMLS, FMADD = 0x4E22CC20, 0x4F821020, 0x4EA2CC20, 0x1F020C20
ADD_VECTOR, FADD, FMUL, LDR_Q, SADALP, RET = 0x4EA28420, 0x4E22D420, 0x6E22DC20, 0x3DC00000, 0x4E606820, 0xD65F03C0

_MAIN = """
#include <stdlib.h>
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *t) { return 0; }
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *t, size_t i) { return 0; }
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *i) { return 0; }
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, on_translation f) {}
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *t, int op, void *at, uint64_t n) {}
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, on_syscall f) {}
int main(int n, char **words)
{ for (int i = 1; i < n; i++) puts(NAMES[kind_of(strtoul(words[i], NULL, 16))]); return 0; }
"""
"""The emulator's side of the plugin's interface, empty, and a program around the classification."""


def _mark(*values: int) -> str:
    return "mark " + " ".join(f"{name}={value}" for name, value in zip(CLASSES, values, strict=True)) + "\n"


def test_marks_are_read_with_every_class():
    assert parse_marks(_mark(1, 2, 3, 4, 5)) == [Counts(1, 2, 3, 4, 5)]


@pytest.mark.parametrize("line", ["", "mark", "exit dot8=1", _mark(1, 2, 3, 4, 5)[:-4], _mark(1, 2, 3, 4, 5)[5:]])
def test_a_line_that_the_counter_does_not_write_is_refused(line: str):
    with pytest.raises(MismatchError, match="no line of counts"):
        parse_marks(f"{line}\n")


def test_counts_are_medians_per_unit_and_the_spread_is_that_of_the_totals():
    marks = parse_marks(_mark(9, 9, 9, 9, 999) + _mark(10, 9, 9, 9, 1098) + _mark(11, 9, 9, 9, 1207))
    summary = summarize_counts(marks, units=10)
    assert summary.median == Counts(0.1, 0, 0, 0, 10.4)
    assert summary.total == pytest.approx(10.5)
    assert summary.spread == pytest.approx(1.0 / 10.5)


def test_every_target_gets_its_own_marks():
    marks = [Counts(0, 0, 0, 0, number) for number in range(6)]
    assert [[mark.other for mark in part] for part in split_marks(marks, targets=2, repeats=2)] == [
        [0, 1, 2],
        [3, 4, 5],
    ]


@pytest.mark.parametrize("number", [5, 7])
def test_too_few_or_too_many_marks_are_refused(number: int):
    with pytest.raises(MismatchError, match=f"left {number} markers where 6"):
        split_marks([Counts(0, 0, 0, 0, 0)] * number, targets=2, repeats=2)


def test_kernel_costs_are_per_multiply_add_and_against_the_first_kernel():
    shapes = (Shape(2, 4, 3), Shape(4, 8, 1))
    totals = {(kernel, shape): 100.0 * (kernel + 1) * (shape + 1) for kernel in range(len(KERNELS)) for shape in (0, 1)}
    costs = kernel_costs([_result("product", total, None) for total in totals.values()], shapes, rows=10)
    cells = {(cost.kernel, cost.shape): cost for cost in costs}
    second = KERNELS[1].name
    assert cells[second, "2x4"].per_mac == pytest.approx(200 / 80)
    assert cells[second, "4x8"].per_mac == pytest.approx(400 / 320)
    assert cells[second, "all"].per_mac == pytest.approx((3 * 200 + 400) / (3 * 80 + 320))
    assert cells[second, "all"].ratio == pytest.approx(0.5)
    assert "(0.50x)" in cost_table(costs)
    assert cost_table(costs).startswith("EMULATED")


def _result(target: str, total: float, self_test: SelfTest | None) -> ArmResult:
    counts = CountSummary(median=Counts(0, 0, 0, total, 0), total=total, spread=0.001)
    return ArmResult(
        target=target, profile="pi5", tokens=64, instructions=counts, self_test=self_test, onnxruntime="1.32.0"
    )


ID = "ab" * 32
RESULTS = (
    _result("fp32", 4e6, None),
    _result("good", 2e6, SelfTest(bundle_id=ID, passed=True, limit=0.04, error=0.0254)),
    _result("bad", 2e6, SelfTest(bundle_id=ID, passed=False, limit=0.04, problem="the vectors are 90 % off")),
)


def test_the_table_says_emulated_and_gives_ratio_and_self_test():
    table = as_table(RESULTS, baseline="fp32")
    assert table.startswith("EMULATED")
    fp32, good, bad = (
        next(line for line in table.splitlines() if line.startswith(name)) for name in ("fp32", "good", "bad")
    )
    assert "1.00x" in fp32
    assert "none (no bundle)" in fp32
    assert "2.00x" in good
    assert "passed: error 2.54% (limit 4.00%)" in good
    assert "FAILED: the vectors are 90 % off" in bad
    assert f"good is bundle {ID}" in table


def test_the_json_says_emulated_in_the_document_and_in_every_row():
    document = as_json(RESULTS, baseline=None)
    rows = document["results"]
    assert isinstance(rows, list)
    assert document["emulated"] is True
    assert [row["emulated"] for row in rows] == [True] * 3
    assert [row["fewer_than_baseline"] for row in rows] == [None] * 3


def test_rows_of_an_exchanged_bundle_are_refused():
    check_unchanged({Path("good"): ID, Path("bad"): ID}, RESULTS)
    with pytest.raises(MismatchError, match="bad was exchanged"):
        check_unchanged({Path("good"): ID, Path("bad"): "cd" * 32}, RESULTS)


def test_only_a_failed_self_test_counts_as_failed():
    assert [result.target for result in failed_self_tests(RESULTS)] == ["bad"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dot8", (SDOT,)),
        ("mmla8", (SMMLA,)),
        ("multiply_wide", (SMULL2, SMLAL_BY_ELEMENT)),
        ("fma", (FMLA, FMLA_BY_ELEMENT, FMLS, FMADD)),
        ("other", (ADD_VECTOR, FADD, FMUL, LDR_Q, SADALP, RET)),
    ],
)
def test_the_counter_knows_the_classes_of_instructions(kind: str, words: tuple[int, ...], classifier: Path):
    done = subprocess.run([classifier, *(hex(word) for word in words)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [kind] * len(words)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that tells the classes of instruction words, from the plugin's own source."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("counter")
    source = resources.files("sf_bench.arm").joinpath("instruction_counter.c").read_text(encoding="utf-8")
    (folder / "classifier.c").write_text(source + _MAIN, encoding="utf-8")
    program = folder / "classifier"
    subprocess.run(["gcc", "-o", program, folder / "classifier.c"], check=True)
    return program
