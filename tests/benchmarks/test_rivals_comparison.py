"""Workers as real processes, their failures, and the table that comes out."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import msgspec
import numpy as np
import pytest

import sf_bench.rivals
from sf_bench.compare_command import ComparisonPlan, run_comparison
from sf_bench.main import COMMANDS, main
from sf_bench.rivals.compare import Comparison, Result, RowError, failed_result, rms_normalised, row_error
from sf_bench.rivals.comparison_table import markdown_of, placed
from sf_bench.rivals.prepare import check_same_front, text_windows
from sf_bench.rivals.protocol import Job, Times, decode_job, encode_job, replies, timed
from sf_bench.rivals.turns import Spread
from sf_bench.rivals.worker_process import Worker, WorkerFailed
from sf_contract.bundle import open_bundle
from sf_contract.errors import DataError, MismatchError, UsageError
from sf_edge.bench.machine import Machine, describe_machine
from support.tiny_bundle import HIDDEN, write_tiny_bundle

WINDOWS = ((1, 2, 3, 4), (4, 3, 2, 1))


class _Words:
    """A tokenizer with one token per word."""

    def encode(self, text, *, special_tokens, max_tokens):
        return [int(word) for word in text.split()]


class _Doubling:
    """A runtime that is never slow and whose rows are the token ids."""

    version = "doubling 1"

    def run(self, token_ids):
        return Times(wall_s=0.002 * token_ids[0], cpu_s=0.001 * token_ids[0])

    def rows(self, token_ids):
        return np.array(token_ids, dtype=np.float32)[:, None]


def _job(tmp_path, bundle: Path) -> Job:
    options = {"bundle": str(bundle), "rows_file": str(tmp_path / "rows.f32")}
    return Job(runtime="onnx", threads=1, windows=WINDOWS, options=options)


def _worker(tmp_path, bundle: Path) -> Worker:
    return Worker(_job(tmp_path, bundle), python=sys.executable, environment=os.environ, log=tmp_path / "log")


def test_a_job_survives_the_pipe():
    job = Job(runtime="onnx", threads=2, windows=WINDOWS, options={"a": "b"})
    assert decode_job(encode_job(job)) == job


def test_a_worker_answers_each_request_once_and_in_order(tmp_path):
    job = Job(runtime="any", threads=1, windows=WINDOWS, options={"rows_file": str(tmp_path / "rows")})
    version, turn, rows = replies(_Doubling(), job, iter(["turn\n", "rows\n"]))
    assert version == {"version": "doubling 1"}
    assert turn == {"wall_s": [0.002, 0.008], "cpu_s": [0.001, 0.004]}
    assert rows == {"shape": [8, 1]}
    assert np.fromfile(tmp_path / "rows", dtype="<f4").tolist() == [1, 2, 3, 4, 4, 3, 2, 1]


def test_processor_time_leaves_out_waiting():
    times = timed(lambda: threading.Event().wait(0.05))
    assert times.cpu_s < 0.04 < times.wall_s


def test_what_a_difference_of_two_models_takes_is_the_difference_of_both_times():
    assert Times(wall_s=5, cpu_s=3) - Times(wall_s=2, cpu_s=1) == Times(wall_s=3, cpu_s=2)


def test_a_worker_process_runs_a_bundle_and_leaves_when_it_is_closed(tmp_path):
    with _worker(tmp_path, write_tiny_bundle(tmp_path / "bundle")) as worker:
        assert worker.version.startswith("ONNX Runtime")
        turn = worker.turn()
        assert len(turn.wall_s) == len(turn.cpu_s) == len(WINDOWS)
        assert worker.rows_shape() == (8, HIDDEN)
        assert worker.memory_mb() > 1
        process = worker._process
    assert process.returncode == 0


def test_a_worker_that_cannot_open_its_front_end_says_why_and_where_its_log_is(tmp_path):
    with pytest.raises(WorkerFailed, match=r"no bundle folder at .*log: .*log\)"):
        _worker(tmp_path, tmp_path / "missing")
    assert "BundleError" in (tmp_path / "log").read_text(encoding="utf-8")


def test_a_worker_that_dies_is_reported_with_its_signal(tmp_path):
    with _worker(tmp_path, write_tiny_bundle(tmp_path / "bundle")) as worker:
        worker._process.kill()
        with pytest.raises(WorkerFailed, match="ended by signal 9"):
            worker.turn()


def test_workers_for_other_environments_need_the_standard_library_and_numpy_only():
    modules = ["protocol", "worker", "runtime_openvino", "runtime_openvino_int8", "runtime_llama"]
    names = ", ".join(f"sf_bench.rivals.{name}" for name in modules)
    folder = Path(sf_bench.rivals.__file__).parents[2]
    script = f"import sys; sys.path.insert(0, {str(folder)!r}); import {names}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"msgspec", "sf_contract", "torch", "onnxruntime"}.isdisjoint(done.stdout.split())


def test_windows_are_whole_and_spread_over_the_text():
    text = " ".join(map(str, range(100)))
    assert text_windows(text, _Words(), tokens=4, windows=3) == ((0, 1, 2, 3), (32, 33, 34, 35), (64, 65, 66, 67))


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(DataError, match="gives 2 windows of 4 tokens; 3 are wanted"):
        text_windows("1 2 3 4 5 6 7 8 9", _Words(), tokens=4, windows=3)


def test_normalised_rows_forget_their_length_and_nothing_else():
    rows = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    assert rms_normalised(rows * 7) == pytest.approx(rms_normalised(rows))
    assert np.square(rms_normalised(rows)[0]).mean() == pytest.approx(1)


def test_the_error_of_rows_is_relative_to_each_row():
    reference = np.array([[10.0, 0.0], [1000.0, 0.0]], dtype=np.float32)
    error = row_error(reference + np.array([[1, 0], [1, 0]], dtype=np.float32), reference)
    assert error.mean == pytest.approx((0.1 + 0.001) / 2)
    assert error.worst == pytest.approx(0.1)


def _comparison(*results: Result) -> Comparison:
    return Comparison(
        machine=Machine(processor="x86_64 Test", cores=2, flags=("avx2",)),
        model="tiny",
        split_layer=1,
        tokens=64,
        windows=16,
        rounds=12,
        threads=1,
        text="prose",
        notes=("a note",),
        results=results,
    )


def test_the_table_has_a_row_for_everyone_who_was_measured():
    result = Result(
        name="ours",
        says="bundle",
        isa="native",
        version="ONNX Runtime 1",
        tokens_per_s=Spread(2500.4, 2400, 2600),
        ratio=Spread(2.5, 2.4, 2.6),
        size_mb=44.4,
        error=RowError(mean=0.03, p99=0.05, worst=0.1),
    )
    table = markdown_of(_comparison(result))
    row = next(line for line in table.splitlines() if line.startswith("| `ours`"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "`ours`",
        "2,500 (2,400 - 2,600)",
        "2.50 (2.40 - 2.60)",
        "-",
        "44.4",
        "-",
        "3.00% / 5.00%",
        "-",
    ]
    assert "- a note" in table


def test_the_table_names_everyone_who_could_not_be_measured_and_why():
    table = markdown_of(_comparison(failed_result("openvino-fp32", "fp32", "native", "RuntimeError: no\nkernel")))
    assert "| `openvino-fp32` | not measured" in table
    assert "**not measured**: RuntimeError: no kernel" in table


def test_a_document_with_marks_gets_the_new_table_in_place_of_the_old_one():
    marks = "<!-- comparison: begin -->", "<!-- comparison: end -->"
    document = f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n"
    assert placed("| new |\n", document) == f"before\n{marks[0]}\n\n| new |\n\n{marks[1]}\nafter\n"
    assert placed("| new |\n", placed("| other |\n", document)) == placed("| new |\n", document)


@pytest.mark.parametrize("document", [None, "a former table\n"])
def test_any_other_file_becomes_the_table(document):
    assert placed("| new |\n", document) == "| new |\n"


def test_all_lines_of_the_table_are_equally_long():
    lines = [
        line for line in markdown_of(_comparison(failed_result("x", "y", "native", "z"))).splitlines() if "|" in line
    ]
    assert len({len(line) for line in lines}) == 1


def test_bundles_of_another_cut_or_model_are_not_compared(tmp_path):
    one = open_bundle(write_tiny_bundle(tmp_path / "one"))
    check_same_front([one, open_bundle(write_tiny_bundle(tmp_path / "two", name="another quantization"))])
    deeper = msgspec.structs.replace(one.manifest.geometry, split_layer=2)
    other = dataclasses.replace(one, manifest=msgspec.structs.replace(one.manifest, geometry=deeper))
    with pytest.raises(MismatchError, match="another base model or cut"):
        check_same_front([one, other])


def _plan(tmp_path, **changes) -> ComparisonPlan:
    wanted = {
        "bundles": (write_tiny_bundle(tmp_path / "bundle"),),
        "rivals": "torch",
        "work": tmp_path / "work",
        "model": None,
        "revision": None,
        "gguf": None,
        "text": None,
        "tokens": 8,
        "windows": 2,
        "rounds": 1,
        "threads": 1,
        "isas": ("native",),
        "pythons": {},
    }
    return ComparisonPlan(**{**wanted, **changes})


def test_a_bundle_of_a_local_model_needs_the_model(tmp_path):
    with pytest.raises(UsageError, match="local model tiny") as refused:
        run_comparison(_plan(tmp_path), markdown=None, as_json=False)
    assert "--model" in refused.value.cure


def test_more_tokens_than_the_bundle_allows_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--tokens 64 is more than the 16"):
        run_comparison(_plan(tmp_path, tokens=64), markdown=None, as_json=False)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--against", "nobody"], "does not know 'nobody'"),
        (["--against", "torch", "--isa", "sse"], "--isa does not know 'sse'"),
        (["--against", "torch", "--tokens", "16,64"], "--tokens 16,64 cannot be used with --against"),
        (["--against", "torch", "--batch", "8"], "--batch 8 cannot be used with --against"),
        (["--against", "torch", "--rounds", "0"], "--windows and --rounds must be 1 or more"),
        (["another", "--json"], "several bundles are measured with --against only"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_with_its_cure(tmp_path, options, what):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()) as said:
        code = main(["front-end", str(bundle), *options])
    assert code == UsageError.exit_code
    assert printed.getvalue() == ""
    assert what in said.getvalue()
    assert len(said.getvalue().splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_itself(command):
    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert "examples:" in printed.getvalue()


def test_the_machine_is_described_by_the_flags_that_decide_which_kernels_run(tmp_path):
    cpuinfo = tmp_path / "proc" / "cpuinfo"
    cpuinfo.parent.mkdir()
    cpuinfo.write_text("model name\t: A Processor\nflags\t\t: fpu avx2 amx_int8 sse\n", encoding="ascii")
    machine = describe_machine(tmp_path)
    assert machine.flags == ("avx2", "amx_int8")
    assert "A Processor" in machine.line
    assert describe_machine(tmp_path / "missing").flags == ()


@pytest.mark.slow
def test_a_tiny_model_is_compared_end_to_end(tmp_path, tiny_model):
    """The real commands: an export, the fp32 graph made on the way, workers, turns, a table."""
    from sf_export.main import main as export

    model = str(tiny_model("llama"))
    text = tmp_path / "text.txt"
    text.write_text("turn the light on now and play music in the open window\n" * 40, encoding="utf-8")
    out = tmp_path / "bundle"
    options = ["--split-layer", "2", "--model", model, "--labels", "a,b", "--out", str(out), "--calibration", str(text)]
    with redirect_stdout(StringIO()):
        assert export([*options, "--quantize", "none", "--wire", "fp32", "--max-tokens", "64"]) == 0
    arguments = [str(out), "--against", "torch,torch-bf16", "--model", model, "--work", str(tmp_path / "work")]
    arguments += ["--text", str(text), "--tokens", "16", "--windows", "4", "--rounds", "2", "--json"]
    with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()) as said:
        assert main(["front-end", *arguments, "--markdown", str(tmp_path / "table.md")]) == 0, said.getvalue()
    results = {result["name"]: result for result in json.loads(printed.getvalue())["results"]}
    assert set(results) == {"splitfrozen:bundle", "onnx-fp32", "torch", "torch-bf16"}
    assert all(result["failed"] is None for result in results.values())
    assert results["torch"]["error"]["worst"] == 0
    assert results["onnx-fp32"]["error"]["worst"] < 1e-4 < results["torch-bf16"]["error"]["mean"]
    assert results["onnx-fp32"]["ratio"]["median"] == 1
    assert "| `torch-bf16`" in (tmp_path / "table.md").read_text(encoding="utf-8")
