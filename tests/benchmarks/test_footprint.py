"""What is read from `/proc` and from an environment, and how a footprint is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sf_bench.footprint import Footprint, Memory, package_sizes, parse_cpu_s, parse_memory
from sf_bench.footprint_command import as_table
from sf_bench.main import main
from sf_contract.errors import UsageError
from support.tiny_bundle import write_tiny_bundle

ROLLUP = """\
55cdd1b10000-7ffdfb872000 ---p 00000000 00:00 0                          [rollup]
Rss:              100000 kB
Pss:               90000 kB
Anonymous:         60000 kB
"""


def test_memory_is_in_millions_of_bytes():
    assert parse_memory(ROLLUP) == Memory(rss_mb=pytest.approx(102.4), anonymous_mb=pytest.approx(61.44))


def test_processor_time_is_found_behind_any_name():
    stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 3"
    assert parse_cpu_s(stat, ticks_per_s=100) == 2.0


def test_memory_above_the_weights_is_told():
    found = Footprint(
        packages={"numpy": 40.0, "onnxruntime": 37.0},
        graph_mb=42.8,
        start_s=2.0,
        starts_s=(1.0, 2.0, 3.0),
        memory=Memory(rss_mb=138.0, anonymous_mb=90.0),
        peak_rss_mb=212.0,
        idle_cpu_percent=0.07,
        busy_cpu_percent=6.8,
        busy_rows_per_s=9.8,
        threads=3,
    )
    text = as_table(found)
    assert "2, 77.0 MB" in text
    assert "95.2 MB above the graph's 42.8" in text
    assert "0.07 % of a core, 3 threads" in text


def test_sizes_come_from_the_environment_that_was_named(tmp_path: Path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "thing-1.dist-info").mkdir()
    (site / "thing-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
    (site / "thing-1.dist-info" / "RECORD").write_text("thing.py,,\nmissing.py,,\n")
    (site / "thing.py").write_bytes(b"#" * 2_000_000)
    assert package_sizes(tmp_path / "env" / "bin" / "python") == {"thing": 2.0}
    with pytest.raises(UsageError, match="cannot be started"):
        package_sizes(tmp_path / "none")


def test_nothing_to_measure_is_refused(tmp_path: Path):
    assert main(["footprint", str(tmp_path), "--data", "x.jsonl", "--starts", "0"]) == 2


@pytest.mark.slow
def test_a_real_device_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "turn the lights on", "label": "lights"}\n')
    options = ["--starts", "2", "--idle-s", "2", "--busy-s", "2", "--rows-per-s", "20", "--json"]
    assert main(["footprint", str(bundle), "--data", str(data), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 20 < found["memory"]["anonymous_mb"] < found["memory"]["rss_mb"] <= found["peak_rss_mb"] < 400
    assert 10 < found["busy_rows_per_s"] <= 25
    assert found["idle_cpu_percent"] < found["busy_cpu_percent"]
    assert 0 < min(found["starts_s"]) <= found["start_s"]
    assert found["threads"] == 3
    assert "numpy" in found["packages"]
