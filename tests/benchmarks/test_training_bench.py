"""`sf-bench training`: what its report says, and a try with a tiny model, in real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sf_bench.main import main
from sf_bench.training.contest import names_of
from sf_bench.training.profiling import kind_of
from sf_bench.training.settings import TrainingBenchSettings
from sf_bench.training.workload import Workload
from sf_contract.errors import UsageError


def test_contestants_that_need_a_first_layer_are_refused_without_one() -> None:
    assert "split-lifted" not in names_of(TrainingBenchSettings(work="w"))
    assert "split-lifted" in names_of(TrainingBenchSettings(work="w", lora_first_layer=5))
    with pytest.raises(UsageError, match="split-lifted cannot take part"):
        names_of(TrainingBenchSettings(work="w", contestants=("split", "split-lifted")))


def test_only_real_tokens_count() -> None:
    workload = Workload(
        token_ids=((1,) * 4, (1,) * 8, (1,) * 2), labels=(0, 1, 0), targets=(None,) * 3, batches=((0, 1), (2,))
    )
    assert [workload.tokens(batch) for batch in workload.batches] == [12, 2]
    assert workload.padding() == pytest.approx(1 - 14 / 18)


def test_products_are_told_apart_by_their_shapes() -> None:
    def kind(*shapes: list[int]) -> str:
        return kind_of("aten::mm", list(shapes), rank=8, vocabulary=512)

    assert kind([30, 64], [64, 128]) == "matrix products with frozen weights"
    assert kind([30, 64], [64, 8]) == "matrix products of LoRA"
    assert kind([30, 64], [64, 512]) == "matrix products of the head"
    assert kind_of("aten::exp_", [[30, 512]], rank=8, vocabulary=512) == "loss"


@pytest.mark.slow
def test_a_try_measures_both_sides_on_the_same_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--contestants", "split,hugging-face", "--quick", "--profile", "--json"]
    assert main(["training", "--random", "llama-tiny", "--work", str(tmp_path), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    ours, rival = report["rows"]
    assert (ours["name"], ours["layers"], rival["layers"]) == ("split", 2, 6)
    assert rival["ratio"]["median"] == 1.0
    assert ours["ratio"]["median"] == pytest.approx(
        ours["tokens_per_s"]["median"] / rival["tokens_per_s"]["median"], rel=1e-6
    )
    assert sum(report["profile"]["shares"].values()) == pytest.approx(1.0)
