"""The studies on a tiny model whose bundles are exact: then every way of computing the same thing has to give the same."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sf_bench.main import main
from sf_contract.errors import MismatchError, UsageError
from support.tolerances import RETRAINED_LOSS

pytestmark = pytest.mark.slow

EXACT = ("--quantize", "none", "--wire", "fp32")
LABELS = ("--labels", "off,on")


@dataclass(frozen=True)
class _Run:
    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        report: dict[str, Any] = json.loads(self.out)
        return report


@pytest.fixture
def bench(tiny_model, trainer_in_this_process):
    """Runs a command on the tiny model; with JSON on standard output."""

    def run(*argv: object) -> _Run:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = main([str(argument) for argument in [*argv, "--model", tiny_model("llama"), "--json"]])
        return _Run(code=code, out=out.getvalue(), err=err.getvalue())

    return run


@pytest.fixture
def files(comparison_data) -> list[object]:
    return ["--train", comparison_data[0], "--validation", comparison_data[1]]


@pytest.fixture
def one_class_files(files, comparison_bundle) -> list[object]:
    return ["--bundle", two_cuts(comparison_bundle)[1], *files]


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Prompts, and completions that follow from them."""
    folder = tmp_path_factory.mktemp("problems")
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

    def write(name: str, colours: tuple[str, ...]) -> Path:
        rows = [
            {"prompt": f"call {colour} {first}", "completion": f"{first} {second}"}
            for colour in colours
            for first, second in pairwise(numbers)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        return path

    return [
        "--train",
        write("train", ("red", "blue", "cold", "warm", "rain", "sun")),
        "--validation",
        write("test", ("lamp",)),
    ]


def two_cuts(comparison_bundle) -> list[Path]:
    """Bundles of cuts 1 and 2."""
    return sorted(comparison_bundle("cuts", *LABELS, *EXACT, cuts="1,2").iterdir())


def cell(work: Path, way: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / f"{way}-seed0.json").read_text(encoding="utf-8"))
    return found


def test_centralised_training_is_the_same_training_and_devices_kept_apart_are_not(
    tmp_path, bench, files, comparison_bundle
):
    """On exact rows pooled and central differ by rounding only: same samples, batches, steps, rates and first weights."""
    work, written = tmp_path / "work", tmp_path / "results" / "one-class"
    bundle = two_cuts(comparison_bundle)[1]
    options = ["--samples", 64, "--epochs", 2, "--batch-samples", 8, "--learning-rate", 0.01, "--seeds", 0]
    done = bench("one-class", "--bundle", bundle, *files, "--work", work, *options, "--report", written)
    ways = {line["way"]: line for line in done.report["ways"]}
    assert list(ways) == ["pooled", "central", "no-pool"]
    assert ways["pooled"]["steps"] == ways["central"]["steps"] == [16]
    assert ways["pooled"]["tokens"] == ways["central"]["tokens"]
    pooled, central, apart = (cell(work, way) for way in ways)
    assert pooled["own"]["loss"] == pytest.approx(central["own"]["loss"], rel=RETRAINED_LOSS)
    assert pooled["own"]["hits"] == pooled["alone"]["hits"]
    assert apart["own"]["loss"] != pytest.approx(pooled["own"]["loss"], rel=0.05)
    markdown = written.with_suffix(".md").read_text(encoding="utf-8")
    assert "devices kept apart" in markdown
    assert "always the commonest answer" in markdown
    assert json.loads(written.with_suffix(".json").read_text(encoding="utf-8")) == done.report


def test_every_cut_of_a_mixed_run_answers_as_the_adapter_alone(tmp_path, bench, files, comparison_bundle):
    """The bundles are exact, so all of them and the whole model with the published adapter compute the same function."""
    bundles = [option for bundle in two_cuts(comparison_bundle) for option in ("--bundle", bundle)]
    done = bench("cuts", *bundles, *files, "--work", tmp_path, "--quick", "--learning-rate", 0.01)
    report = done.report
    assert [(line["way"], line["split_layer"]) for line in report["devices"]] == [
        ("mixed", 1),
        ("mixed", 2),
        ("single", 2),
    ]
    assert all(line["like_alone"] == [1.0] for line in report["devices"])
    assert report["ground"]["first_layer"] == 2
    mixed, single = cell(tmp_path, "mixed"), cell(tmp_path, "single")
    assert mixed["alone"]["loss"] == pytest.approx(single["alone"]["loss"], rel=RETRAINED_LOSS)
    assert len({sum(device["answers"]["hits"]) for device in mixed["devices"]}) == 1


def test_completions_behind_an_exact_front_end_are_learned_and_answered_as_centrally(
    tmp_path, bench, problems, comparison_bundle
):
    bundle = comparison_bundle("causal", "--task", "causal-lm", *EXACT)
    options = ["--samples", 48, "--epochs", 2, "--learning-rate", 0.01, "--seeds", 0, "--prompts", 3, "--new-tokens", 6]
    report = bench("completions", "--bundle", bundle, *problems, "--work", tmp_path, *options).report
    assert abs(report["own"]["mean"]) < 100 * RETRAINED_LOSS
    assert report["is_within_target"] is True
    (answers,) = report["answers"]
    assert len(answers["tokens"]) == 3
    assert answers["same"] == answers["tokens"]


def test_finished_cells_are_not_computed_again_and_other_settings_are_refused(tmp_path, bench, one_class_files):
    argv = ["one-class", *one_class_files, "--work", tmp_path, "--quick"]
    first = bench(*argv, "--ways", "pooled")
    again = bench(*argv, "--ways", "pooled")
    assert again.report == first.report
    assert "training" not in again.err
    other = bench(*argv, "--ways", "pooled", "--epochs", 3)
    assert other.code == MismatchError.exit_code


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ways", "telepathy"], "telepathy"),
        (["--devices", "3"], "2 classes"),
        (["--samples", "100000"], "phrases"),
        (["--train", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes_are_told_with_a_cure(tmp_path, bench, one_class_files, options, said):
    done = bench("one-class", *one_class_files, "--work", tmp_path / "work", *options)
    assert done.code != 0
    assert said in done.err
    assert "cure" in done.err
    assert not (tmp_path / "work").exists()


def test_one_bundle_is_no_mixture(tmp_path, bench, one_class_files):
    done = bench("cuts", *one_class_files, "--work", tmp_path)
    assert done.code == UsageError.exit_code
    assert "different cuts" in done.err
