"""EMULATED ARM: real aarch64 processes under QEMU. Skipped where `sf-bench arm-setup` was not run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sf_bench.arm.profiles import PROFILES
from sf_bench.arm.toolkit import Toolkit, ToolMissing, default_folder, emulator_command, open_toolkit, run_emulated
from sf_bench.main import main
from support.tiny_bundle import embedding_table, replace_files, write_tiny_bundle

pytestmark = pytest.mark.slow

_PRODUCT = """
import sys
import numpy as np
from sf_contract.front_end import open_session
session = open_session(open(sys.argv[1], "rb").read())
x = np.frombuffer(open(sys.argv[2], "rb").read(), dtype=np.uint8).reshape(16, -1)
print(session.run(None, {"x": x})[0].tolist())
"""


@pytest.fixture(scope="module")
def toolkit() -> Toolkit:
    try:
        return open_toolkit(default_folder())
    except ToolMissing as problem:
        pytest.skip(f"{problem.what}; {problem.cure}")


def test_a_bundle_is_counted_and_passes_its_self_test(
    toolkit: Toolkit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert (
        main(["arm", str(bundle), "--profile", "pi4", "--tokens", "8", "--toolkit", str(toolkit.folder), "--json"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    (row,) = document["results"]
    assert document["emulated"] is True
    assert row["self_test"]["passed"] is True
    assert row["instructions"]["total"] > 0
    assert row["instructions"]["median"]["dot8"] == 0


def test_a_bundle_that_fails_there_is_shown_and_ends_with_its_exit_code(
    toolkit: Toolkit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    replace_files(bundle, vectors=np.ones((7, embedding_table().shape[1]), dtype="<f4").tobytes())
    assert main(["arm", str(bundle), "--profile", "pi5", "--tokens", "8", "--toolkit", str(toolkit.folder)]) == 24
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "EMULATED pi5" in captured.err


@pytest.mark.parametrize("name", ["pi3", "pi5", "i8mm"])
def test_weights_of_eight_bits_are_exact_on_every_class_of_arm(toolkit: Toolkit, tmp_path: Path, name: str):
    """The largest operands there are: what would overflow where products are added in 16 bits, as they are on AVX2."""
    generator = np.random.default_rng(0)
    x = generator.choice(np.array([0, 1, 254, 255], dtype=np.uint8), (16, 576))
    weight = np.full((576, 16), 127, dtype=np.int8)
    weight[:, ::2] = -127
    (tmp_path / "product.onnx").write_bytes(_integer_product(weight))
    (tmp_path / "x").write_bytes(x.tobytes())
    arguments = ["-c", _PRODUCT, str(tmp_path / "product.onnx"), str(tmp_path / "x")]
    contract = Path(__file__).parents[2] / "contract"
    said = run_emulated(emulator_command(toolkit, PROFILES[name], arguments, code=contract), PROFILES[name])
    assert json.loads(said) == ((x.astype(np.int64) - 128) @ weight.astype(np.int64)).tolist()


def _integer_product(weight: np.ndarray[tuple[int, int], np.dtype[np.int8]]) -> bytes:
    inner, outer = weight.shape
    constants = {"w": weight, "x_zero": np.array(128, dtype=np.uint8), "w_zero": np.array(0, dtype=np.int8)}
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", *constants], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [16, inner])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [16, outer])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()
