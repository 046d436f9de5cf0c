"""Names of rivals, instruction limits, interpreters."""

from __future__ import annotations

import os
import sys

import pytest

from sf_bench.compare_command import parse_pythons
from sf_bench.rivals.contest import find_interpreters
from sf_bench.rivals.contestants import NATIVE, isa_note, isas_of, parse_rivals
from sf_bench.rivals.worker_process import Interpreter, check_packages, foreign_interpreter, worker_environment
from sf_contract.errors import UsageError


def test_the_baseline_is_always_there_and_first():
    assert [rival.name for rival in parse_rivals("torch")] == ["onnx-fp32", "torch"]


def test_a_group_stands_for_all_its_rivals():
    names = [rival.name for rival in parse_rivals("openvino-int8,llama.cpp")]
    assert names[1:] == [
        "openvino-int8-weights",
        "openvino-int8-full",
        "llama.cpp-q8_0",
        "llama.cpp-q4_0",
        "llama.cpp-q4_1",
    ]


def test_a_rival_named_twice_runs_once():
    assert len(parse_rivals("torch, torch,all")) == len(parse_rivals("all"))


def test_an_unknown_rival_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="tensorflow") as refused:
        parse_rivals("torch,tensorflow")
    assert "openvino-int8" in refused.value.cure


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(UsageError, match=r"^llama-cpp-python is not installed for") as refused:
        check_packages(
            Interpreter(sys.executable),
            runtime="llama.cpp",
            packages=["json", "llama_cpp_that_nobody_has"],
            pip_names={"llama_cpp_that_nobody_has": "llama-cpp-python"},
        )
    assert "pip install llama-cpp-python" in refused.value.cure
    assert "--python llama.cpp=" in refused.value.cure


def test_a_package_missing_in_another_environment_is_named_too(tmp_path):
    other = foreign_interpreter(sys.executable, tmp_path)
    with pytest.raises(UsageError, match="nobody_has_this is not installed"):
        check_packages(other, runtime="openvino", packages=["json", "nobody_has_this"], pip_names={})


def test_a_program_that_is_no_python_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(UsageError, match="no Python interpreter"):
        find_interpreters(
            parse_rivals("openvino"), {"openvino": str(tmp_path / "python")}, python=sys.executable, work=tmp_path
        )


def test_another_environment_sees_this_package_and_none_of_this_environments_libraries(tmp_path):
    other = foreign_interpreter(sys.executable, tmp_path)
    environment = worker_environment(other, threads=1, limits={}, base=os.environ)
    assert environment["PYTHONPATH"] == str(tmp_path / "packages")
    assert [entry.name for entry in (tmp_path / "packages").iterdir()] == ["sf_bench"]
    assert (tmp_path / "packages" / "sf_bench" / "rivals" / "worker.py").is_file()


def test_workers_get_the_threads_and_limits_of_the_comparison_and_report_to_nobody():
    environment = worker_environment(
        Interpreter(sys.executable), threads=2, limits={"ONEDNN_MAX_CPU_ISA": "AVX2"}, base={"OMP_NUM_THREADS": "8"}
    )
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert environment["NNCF_CI"] == "1"


def test_a_limit_that_forbids_nothing_here_is_not_measured_twice_and_the_table_says_so():
    assert isas_of("torch", (NATIVE, "avx2"), ("avx2",)) == (NATIVE,)
    assert "nothing above avx2" in isa_note((NATIVE, "avx2"), ("avx2",))


def test_a_limit_that_forbids_something_is_measured_beside_the_native_run():
    flags = ("avx2", "avx512f", "amx_int8")
    assert isas_of("openvino", (NATIVE, "avx2"), flags) == (NATIVE, "avx2")
    assert "ONNX Runtime has no such switch" in isa_note((NATIVE, "avx2"), flags)


def test_runtimes_that_obey_no_limit_run_once():
    assert isas_of("onnx", (NATIVE, "avx2"), ("avx2", "amx_int8")) == (NATIVE,)


def test_interpreters_are_given_as_runtime_and_path():
    assert parse_pythons(["openvino=/a/python", "llama.cpp=/b/python"]) == {
        "openvino": "/a/python",
        "llama.cpp": "/b/python",
    }


@pytest.mark.parametrize("option", ["openvino", "openvino=", "tensorflow=/a/python"])
def test_a_python_option_that_names_no_runtime_or_no_path_is_refused(option):
    with pytest.raises(UsageError, match="RUNTIME=PATH"):
        parse_pythons([option])
