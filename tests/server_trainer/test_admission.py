from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf_contract.activations import NO_TARGET, EncodedSample, pack
from sf_contract.bundle import Bundle
from sf_contract.codec import EncodedRows, WireCodec, encode_rows
from sf_contract.manifest import Manifest, Task
from sf_contract.messages import PROTOCOL_VERSION, Hello, Refusal, RefusalCode, Rejected, RejectionCode, Role
from sf_server.ingest.admission import LIVE_S, Presence, Session, find_fault, judge_batch, judge_hello

OUTBOX = "1" * 32


@pytest.fixture
def bundle(make_bundle: Any) -> Bundle:
    opened: Bundle = make_bundle()
    return opened


@pytest.fixture
def text_bundle(make_bundle: Any) -> Bundle:
    opened: Bundle = make_bundle(name="text", task=Task.CAUSAL_LM)
    return opened


def _hello(bundle: Bundle, **changes: Any) -> Hello:
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        software="test",
        device="phone",
        outbox=OUTBOX,
        bundle_id=bundle.bundle_id,
        self_test_error=0.01,
        waiting_samples=0,
    )
    return msgspec.structs.replace(hello, **changes)


def _judge(bundle: Bundle, hello: Hello, **facts: Any) -> Session | Refusal:
    known: dict[str, Any] = {"bundles": {bundle.bundle_id: bundle.manifest}, "owner": None, "present": (), "now_s": 0.0}
    return judge_hello(hello, **{**known, **facts})


def test_a_device_that_fits_gets_a_session(bundle: Bundle) -> None:
    assert _judge(bundle, _hello(bundle)) == Session(device="phone", outbox=OUTBOX, bundle_id=bundle.bundle_id)


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"protocol": 9}, RefusalCode.PROTOCOL, ("version 9", f"({PROTOCOL_VERSION})")),
        ({"bundle_id": "f" * 64}, RefusalCode.BUNDLE, ("ffffffffffff",)),
        ({"self_test_error": 0.5}, RefusalCode.SELF_TEST, ("50.00%", "5.00%")),
    ],
)
def test_what_never_fits_is_refused_for_good_and_both_sides_are_named(
    bundle: Bundle, changes: dict[str, Any], code: RefusalCode, named: tuple[str, ...]
) -> None:
    refused = _judge(bundle, _hello(bundle, **changes))
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.retry_after_s) == (code, None)
    assert all(part in refused.detail for part in named)


def test_the_server_names_the_bundle_it_trains_for(bundle: Bundle) -> None:
    refused = _judge(bundle, _hello(bundle, bundle_id="f" * 64))
    assert isinstance(refused, Refusal)
    assert bundle.bundle_id[:12] in refused.detail


def test_a_self_test_error_that_equals_the_limit_passes(bundle: Bundle) -> None:
    limit = bundle.manifest.self_test.max_mean_error
    assert isinstance(_judge(bundle, _hello(bundle, self_test_error=limit)), Session)


def test_a_name_in_use_by_a_live_device_is_refused_until_that_one_may_be_gone(bundle: Bundle) -> None:
    other = Presence(Session(device="phone", outbox="2" * 32, bundle_id=bundle.bundle_id), last_heard_s=100.0)
    refused = _judge(bundle, _hello(bundle), present=(other,), now_s=110.0)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.retry_after_s) == (RefusalCode.DEVICE_NAME, LIVE_S - 10)
    assert isinstance(_judge(bundle, _hello(bundle), present=(other,), now_s=100.0 + LIVE_S), Session)


def test_a_device_that_connects_again_keeps_its_name(bundle: Bundle) -> None:
    itself = Presence(Session(device="phone", outbox=OUTBOX, bundle_id=bundle.bundle_id), last_heard_s=100.0)
    assert isinstance(_judge(bundle, _hello(bundle), present=(itself,), now_s=100.0), Session)


def test_an_outbox_that_was_copied_to_another_device_is_refused_for_good(bundle: Bundle) -> None:
    refused = _judge(bundle, _hello(bundle, device="clone"), owner="phone")
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.retry_after_s) == (RefusalCode.DEVICE_NAME, None)
    assert "clone" in refused.detail
    assert "phone" in refused.detail


def _judge_batch(bundle: Bundle, samples: list[EncodedSample], **changes: Any) -> list[EncodedSample] | Refusal:
    batch, buffers = pack(changes.pop("bundle_id", bundle.bundle_id), samples)
    known: dict[str, Any] = {
        "session": Session(device="phone", outbox=OUTBOX, bundle_id=bundle.bundle_id),
        "manifest": bundle.manifest,
        "waiting_bytes": 0,
        "credit_bytes": 10_000,
    }
    return judge_batch(batch, changes.pop("buffers", buffers), **{**known, **changes})


def test_samples_of_a_batch_come_out_in_order(bundle: Bundle, make_sample: Any) -> None:
    opened = _judge_batch(bundle, [make_sample(4), make_sample(2)])
    assert isinstance(opened, list)
    assert [sample.ordinal for sample in opened] == [4, 2]


def test_a_batch_of_another_bundle_than_greeted_with_is_refused(bundle: Bundle, make_sample: Any) -> None:
    refused = _judge_batch(bundle, [make_sample(0)], bundle_id="f" * 64)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.retry_after_s) == (RefusalCode.BUNDLE, None)


@pytest.mark.parametrize("codec", [WireCodec.FP32, WireCodec.FP16])
def test_rows_of_another_codec_are_refused_as_a_whole(bundle: Bundle, make_sample: Any, codec: WireCodec) -> None:
    refused = _judge_batch(bundle, [make_sample(0, codec=codec)])
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.MALFORMED


def test_rows_of_another_hidden_size_are_refused_as_a_whole(bundle: Bundle) -> None:
    rows = encode_rows(np.ones((2, 64), dtype=np.float32), WireCodec.INT8)
    refused = _judge_batch(bundle, [EncodedSample(ordinal=0, role=Role.TRAIN, rows=rows, label=0)])
    assert isinstance(refused, Refusal)
    assert "[2, 8]" in refused.detail


def test_more_bytes_than_granted_are_refused_for_now(bundle: Bundle, make_sample: Any) -> None:
    samples = [make_sample(0), make_sample(1)]
    nbytes = sum(sample.nbytes for sample in samples)
    assert isinstance(_judge_batch(bundle, samples, credit_bytes=nbytes), list)
    for facts in ({"credit_bytes": nbytes - 1}, {"credit_bytes": nbytes, "waiting_bytes": 1}):
        refused = _judge_batch(bundle, samples, **facts)
        assert isinstance(refused, Refusal)
        assert refused.code is RefusalCode.OVER_CREDIT
        assert refused.retry_after_s is not None


def test_a_single_sample_larger_than_the_credit_is_let_through_alone(bundle: Bundle, make_sample: Any) -> None:
    assert isinstance(_judge_batch(bundle, [make_sample(0)], credit_bytes=1), list)
    assert isinstance(_judge_batch(bundle, [make_sample(0)], credit_bytes=1, waiting_bytes=1), Refusal)


def _code(sample: EncodedSample, manifest: Manifest) -> RejectionCode | None:
    fault = find_fault(sample, manifest)
    assert fault is None or (fault.ordinal == sample.ordinal and 0 < len(fault.detail) <= 256)
    return None if fault is None else fault.code


def test_a_good_sample_has_no_fault(bundle: Bundle, text_bundle: Bundle, make_sample: Any) -> None:
    assert _code(make_sample(0, tokens=16), bundle.manifest) is None
    assert _code(make_sample(0, label=None, targets=[NO_TARGET, 0, 99]), text_bundle.manifest) is None


def test_a_sample_with_more_tokens_than_the_bundle_allows_is_too_long(bundle: Bundle, make_sample: Any) -> None:
    assert _code(make_sample(0, tokens=17), bundle.manifest) is RejectionCode.TOO_LONG


@pytest.mark.parametrize("label", [None, 2, 9_999])
def test_a_label_that_is_no_class_is_rejected(bundle: Bundle, make_sample: Any, label: int | None) -> None:
    assert _code(make_sample(0, label=label), bundle.manifest) is RejectionCode.LABEL


def test_a_class_label_in_a_text_task_is_rejected(text_bundle: Bundle, make_sample: Any) -> None:
    assert _code(make_sample(0, label=0, targets=[1, 2, 3]), text_bundle.manifest) is RejectionCode.LABEL


@pytest.mark.parametrize("targets", [[1, 2, 100], [1, -1, 2], [-101, 1, 1], [2**31 - 1] * 3, [NO_TARGET] * 3, None])
def test_targets_outside_the_vocabulary_or_none_at_all_are_rejected(
    text_bundle: Bundle, make_sample: Any, targets: list[int] | None
) -> None:
    assert _code(make_sample(0, label=None, targets=targets), text_bundle.manifest) is RejectionCode.TARGETS


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 1e38])
def test_scales_that_do_not_decode_to_finite_numbers_are_rejected(
    bundle: Bundle, make_sample: Any, scale: float
) -> None:
    rows = make_sample(0).rows
    spoilt = EncodedRows(codec=rows.codec, rows=rows.rows, scales=np.full_like(rows.scales, scale))
    sample = EncodedSample(ordinal=0, role=Role.TRAIN, rows=spoilt, label=0)
    assert _code(sample, bundle.manifest) is RejectionCode.NOT_FINITE


@pytest.mark.parametrize("codec", [WireCodec.FP32, WireCodec.FP16])
def test_rows_that_are_not_finite_are_rejected(make_bundle: Any, make_sample: Any, codec: WireCodec) -> None:
    manifest = make_bundle(codec=codec).manifest
    spoilt = make_sample(0, codec=codec)
    spoilt.rows.rows[1, 2] = np.nan
    assert _code(spoilt, manifest) is RejectionCode.NOT_FINITE


@given(label=st.integers(0, 9_999), tokens=st.integers(1, 40))
def test_exactly_what_the_bundle_allows_is_admitted(label: int, tokens: int) -> None:
    rows = EncodedRows(
        codec=WireCodec.INT8, rows=np.ones((tokens, 8), dtype=np.int8), scales=np.ones((tokens, 1), dtype=np.float32)
    )
    fault = find_fault(EncodedSample(ordinal=3, role=Role.TRAIN, rows=rows, label=label), _MANIFEST)
    allowed = label < len(_MANIFEST.task.labels) and tokens <= _MANIFEST.geometry.max_tokens
    assert (fault is None) == allowed
    assert fault is None or isinstance(fault, Rejected)


_MANIFEST = msgspec.convert(
    {
        "format_version": 1,
        "base_model": {
            "name": "m",
            "revision": None,
            "model_type": "gpt2",
            "config_sha256": "0" * 64,
            "weights_sha256": "0" * 64,
        },
        "geometry": {"split_layer": 1, "layers": 2, "hidden": 8, "vocabulary": 100, "max_tokens": 16},
        "task": {"task": "text-classification", "template": {}, "labels": ["a", "b", "c"]},
        "wire_codec": "int8",
        "quantization": {
            "requested": "none",
            "choices": [],
            "error": {"tokens": 1, "text": "", "mean": 0.0, "p99": 0.0, "worst": 0.0},
        },
        "graph_file": "g",
        "tokenizer_file": "t",
        "self_test": {"token_ids": [[1]], "rows_file": "r", "max_mean_error": 0.1},
        "files": [{"name": name, "nbytes": 0, "sha256": "0" * 64} for name in "gtr"],
        "tools": {},
    },
    Manifest,
)
