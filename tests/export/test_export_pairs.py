"""Pairs of texts: what the tokenizer's own pair form and token types give on the server, devices compute too."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from sf_contract.bundle import open_bundle
from sf_contract.codec import decode_rows
from sf_contract.errors import UsageError
from sf_contract.front_end import open_front_end
from sf_contract.records import read_records
from sf_contract.samples import tokenize
from sf_contract.tokenizer import open_tokenizer
from sf_model.checkpoint import open_checkpoint
from sf_model.pairs import pair_separator, pair_template, token_types
from support.finished_run import export_tiny
from support.tiny_models import save_tiny_model, tiny_tokenizer
from support.tolerances import FP32_RELATIVE

PAIR = {"sentence1": "the light is on", "sentence2": "stop the music", "label": "same"}


def _give_pair_form(folder: Path, *, has_types: bool = True) -> Path:
    """The tiny tokenizer, joining texts as BERT's does; `<end>` is its separator."""
    tokenizer = tiny_tokenizer()
    second = 1 if has_types else 0
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A <end>", pair=f"<pad> $A <end> $B:{second} <end>:{second}",
        special_tokens=[("<pad>", 0), ("<end>", 2)],
    )  # fmt: skip
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>", pad_token="<pad>", sep_token="<end>",
        cls_token="<pad>", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return _give_pair_form(save_tiny_model("bert", tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def pair_bundle(bert, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pair") / "bundle"
    (folder,) = export_tiny(
        bert, out, split_layer=2, labels=["same", "other"], text_pair=["sentence1", "sentence2"], quantize="none",
        wire="fp32",
    )  # fmt: skip
    return folder


def test_types_change_behind_the_first_separator():
    ids = torch.tensor([[5, 6, 2, 7, 2, 0], [5, 6, 7, 8, 2, 0]])
    assert token_types(ids, 2).tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]


@pytest.mark.slow
def test_a_device_computes_the_rows_of_the_pair_with_token_types(pair_bundle, bert):
    """Independent reference: Transformers' own tokenizer, called with two texts, and the whole model."""
    bundle = open_bundle(pair_bundle)
    sample = tokenize(PAIR, bundle.manifest.task, open_tokenizer(bundle), max_tokens=32)
    given = AutoTokenizer.from_pretrained(bert)(PAIR["sentence1"], PAIR["sentence2"], return_tensors="pt")
    assert sample.token_ids == given["input_ids"][0].tolist()
    assert given["token_type_ids"][0].tolist() == [0] * 6 + [1] * 4
    model = AutoModel.from_pretrained(bert).eval()
    with torch.no_grad():
        wanted = model(**given, output_hidden_states=True).hidden_states[2][0].numpy()
        untyped = model(given["input_ids"], output_hidden_states=True).hidden_states[2][0].numpy()
    found = decode_rows(open_front_end(bundle).run([sample.token_ids])[0])
    assert np.abs(found - wanted).max() < FP32_RELATIVE * np.abs(wanted).max() * 10
    assert np.abs(untyped - wanted).max() > 0.05, "types do not matter here"


@pytest.mark.slow
def test_the_self_test_holds_a_pair_so_that_a_front_end_without_types_fails_it(pair_bundle):
    ids = open_bundle(pair_bundle).manifest.self_test.token_ids
    assert any(2 in sequence[:-1] for sequence in ids)


@pytest.mark.slow
def test_the_format_of_the_bundle_is_the_usual_one(pair_bundle):
    manifest = open_bundle(pair_bundle).manifest
    assert (manifest.format_version, manifest.task.task) == (1, "text-classification")
    assert manifest.task.template.prompt == "{sentence1} <end> {sentence2}"


def test_a_tokenizer_without_types_gives_a_pair_without_them(bert, tmp_path):
    folder = _give_pair_form(save_tiny_model("bert", tmp_path / "m"), has_types=False)
    checkpoint = open_checkpoint(str(folder))
    template = pair_template(checkpoint, ("a", "b"))
    assert template == "{a} <end> {b}"
    assert pair_separator(checkpoint, template) is None
    assert pair_separator(open_checkpoint(str(bert)), template) == 2


def test_a_single_text_has_no_types(bert):
    assert pair_separator(open_checkpoint(str(bert)), "{text}") is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_decoders_get_one_text_per_line(tiny_model, family):
    assert (
        pair_template(open_checkpoint(str(tiny_model(family))), ("premise", "hypothesis")) == "{premise}\n{hypothesis}"
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"text_pair": ["a", "b"], "template": "{a} {b}"}, "--text-pair and --template"),
        ({"text_pair": ["a", "a"]}, "twice"),
        ({"text_pair": ["a"]}, "Expected"),
        ({"text_pair": ["a", "b c"]}, "Expected"),
        ({"text_pair": ["a", "b"], "labels": (), "task": "causal-lm"}, "for classification"),
    ],
)
def test_pairs_that_cannot_be_are_refused_before_a_model_is_opened(tmp_path, settings, named):
    import msgspec

    given = {"labels": ("x", "y"), "split_layer": 1, "model": str(tmp_path / "none"), **settings}
    with pytest.raises((UsageError, msgspec.ValidationError), match=named):
        export_tiny(Path(given.pop("model")), tmp_path / "out", **given)


@pytest.mark.slow
def test_a_run_of_pairs_answers_as_the_merged_model_with_the_usual_tokenizer_call(pair_bundle, bert, tmp_path):
    """The user's end: `from_pretrained`, `tokenizer(a, b)`, nothing of ours."""
    from sf_contract.records import Row
    from sf_server.results.merge_command import write_merged
    from sf_server.results.predict_command import Predictor
    from sf_server.results.text_front import FrontKind
    from support.finished_run import finished_run

    pieces = finished_run(tmp_path / "run", model=bert, bundles=[pair_bundle])
    write_merged(pieces, tmp_path / "merged", dtype=torch.float32)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    given = AutoTokenizer.from_pretrained(tmp_path / "merged")(
        PAIR["sentence1"], PAIR["sentence2"], return_tensors="pt"
    )
    with torch.no_grad():
        wanted = torch.softmax(merged(**given).logits[0], dim=-1)
        untyped = torch.softmax(merged(given["input_ids"]).logits[0], dim=-1)
    for kind in FrontKind:
        answer = Predictor(pieces, kind, pieces.bundle).answer(Row(1, PAIR))
        found = {item["label"]: item["probability"] for item in answer["classes"]}
        assert [found["same"], found["other"]] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert float((wanted - untyped).abs().max()) > 1e-3, "types do not matter here"


@pytest.mark.slow
def test_rows_of_mrpc_converted_by_their_owner_become_pairs(pair_bundle, tmp_path):
    """Real sentences: quotes, commas and all, as JSON Lines and as CSV; both give the same ids."""
    source = Path(__file__).parents[2].parent / "shared" / "data" / "mrpc" / "validation.parquet"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    pandas = pytest.importorskip("pyarrow.parquet")
    table = pandas.read_table(source).to_pylist()[:60]
    columns = [name for name in table[0] if name != "label"]
    assert {"sentence1", "sentence2"} <= set(columns)
    rows = [
        {name: row[name] for name in ("sentence1", "sentence2")} | {"label": ("same", "other")[row["label"] % 2]}
        for row in table
    ]
    (tmp_path / "mrpc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "mrpc.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    bundle = open_bundle(pair_bundle)
    tokenizer = open_tokenizer(bundle)
    found = [
        [
            tokenize(row.record, bundle.manifest.task, tokenizer, max_tokens=128).token_ids
            for row in read_records(tmp_path / name)
        ]
        for name in ("mrpc.jsonl", "mrpc.csv")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 60
    assert all(ids.count(2) == 2 for ids in found[0])
