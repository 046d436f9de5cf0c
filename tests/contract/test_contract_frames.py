"""Wire frames: golden bytes, round trips, limits, and any bytes from outside."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sf_contract import limits
from sf_contract.activations import NO_TARGET, EncodedSample, pack, unpack
from sf_contract.codec import EncodedRows, WireCodec, encode_rows
from sf_contract.errors import MalformedMessage
from sf_contract.frames import MAGIC, Envelope, Header, decode, encode
from sf_contract.messages import (
    Ack,
    ActivationBatch,
    AlreadyStored,
    AnyMessage,
    Approval,
    ClassProbability,
    Finished,
    FinishNoted,
    Hello,
    Inquiry,
    Ping,
    Pong,
    PredictAnswer,
    Predicted,
    PredictRequest,
    Refusal,
    RefusalCode,
    Rejected,
    RejectionCode,
    Role,
    SampleHeader,
    Stored,
    Welcome,
)
from support.wire_rows import int4_for

OUTBOX = "0123456789abcdef0123456789abcdef"
BUNDLE = "ab" * 32
EXAMPLES: list[tuple[AnyMessage, bytes]] = [
    (
        Hello(
            protocol=1, software="sf 1", device="pi", outbox=OUTBOX, bundle_id=BUNDLE, self_test_error=0.5, waiting_samples=3
        ),
        b'{"buffers":[],"message":{"bundle_id":"' + BUNDLE.encode() + b'","device":"pi","outbox":"' + OUTBOX.encode()
        + b'","protocol":1,"self_test_error":0.5,"software":"sf 1","type":"hello","waiting_samples":3}}',
    ),
    (
        Welcome(software="sf 1", credit_bytes=1024),
        b'{"buffers":[],"message":{"credit_bytes":1024,"software":"sf 1","type":"welcome"}}',
    ),
    (
        Refusal(code=RefusalCode.STORE_FULL, detail="full", retry_after_s=2.5),
        b'{"buffers":[],"message":{"code":"store-full","detail":"full","retry_after_s":2.5,"type":"refusal"}}',
    ),
    (
        Ack(verdicts=(Stored(1), AlreadyStored(2), Rejected(3, RejectionCode.LABEL, "why")), credit_bytes=7),
        b'{"buffers":[],"message":{"credit_bytes":7,"type":"ack","verdicts":[{"ordinal":1,"verdict":"stored"},'
        b'{"ordinal":2,"verdict":"already-stored"},{"code":"label","detail":"why","ordinal":3,"verdict":"rejected"}]}}',
    ),
    (
        Finished(samples=2, rejected=1, skipped_rows=0),
        b'{"buffers":[],"message":{"rejected":1,"samples":2,"skipped_rows":0,"type":"finished"}}',
    ),
    (FinishNoted(), b'{"buffers":[],"message":{"type":"finish-noted"}}'),
    (Ping(), b'{"buffers":[],"message":{"type":"ping"}}'),
    (
        Ping(activity="paused: 81 °C hot"),
        b'{"buffers":[],"message":{"activity":"paused: 81 \xc2\xb0C hot","type":"ping"}}',
    ),
    (Pong(), b'{"buffers":[],"message":{"type":"pong"}}'),
    (
        Inquiry(protocol=1, software="sf 1", device="pi", outbox=OUTBOX, bundle_id=BUNDLE, self_test_error=0.5),
        b'{"buffers":[],"message":{"bundle_id":"' + BUNDLE.encode() + b'","device":"pi","outbox":"' + OUTBOX.encode()
        + b'","protocol":1,"self_test_error":0.5,"software":"sf 1","type":"inquiry"}}',
    ),
    (
        Inquiry(protocol=1, software="sf 1", device="pi"),
        b'{"buffers":[],"message":{"bundle_id":null,"device":"pi","outbox":null,"protocol":1,"self_test_error":null,'
        b'"software":"sf 1","type":"inquiry"}}',
    ),
    (
        Approval(software="sf 1", clock_s=1795000000.5),
        b'{"buffers":[],"message":{"clock_s":1795000000.5,"software":"sf 1","type":"approval"}}',
    ),
    (
        PredictRequest(device="pi", bundle_id=BUNDLE, number=7, tokens=(2, 1), classes=3),
        b'{"buffers":[],"message":{"bundle_id":"' + BUNDLE.encode()
        + b'","classes":3,"device":"pi","number":7,"tokens":[2,1],"type":"predict"}}',
    ),
    (
        PredictAnswer(
            number=7,
            predictions=(Predicted((ClassProbability(1, 0.75),)), Rejected(1, RejectionCode.NOT_FINITE, "why")),
        ),
        b'{"buffers":[],"message":{"number":7,"predictions":[{"classes":[{"label":1,"probability":0.75}],'
        b'"verdict":"predicted"},{"code":"not-finite","detail":"why","ordinal":1,"verdict":"rejected"}],'
        b'"type":"predictions"}}',
    ),
]  # fmt: skip


def small_batch() -> tuple[ActivationBatch, tuple[np.ndarray, ...]]:
    rows = EncodedRows(
        codec=WireCodec.INT8,
        rows=np.array([[1, -2, 127], [-127, 0, 5]], dtype=np.int8),
        scales=np.array([[0.5], [2.0]], dtype=np.float32),
    )
    targets = np.array([NO_TARGET, 258], dtype=np.int32)
    return pack(BUNDLE, [EncodedSample(ordinal=9, role=Role.TRAIN, rows=rows, targets=targets)])


@pytest.mark.parametrize(("message", "header"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_bytes_of_every_message_are_these(message: AnyMessage, header: bytes) -> None:
    assert [bytes(frame) for frame in encode(message)] == [b"SFZ\x01", header]
    assert decode([b"SFZ\x01", header]).message == message


def test_the_bytes_of_a_batch_are_these() -> None:
    frames = [bytes(frame) for frame in encode(*small_batch())]
    assert frames[0].hex() == "53465a01"
    assert frames[1] == (
        b'{"buffers":[{"dtype":"int8","shape":[2,3]},{"dtype":"float32","shape":[2,1]},{"dtype":"int32","shape":[2]}],'
        b'"message":{"bundle_id":"'
        + BUNDLE.encode()
        + b'","samples":[{"label":null,"ordinal":9,"role":"train","tokens":2}],'
        b'"type":"batch"}}'
    )
    assert [frame.hex() for frame in frames[2:]] == ["01fe7f810005", "0000003f00000040", "9cffffff02010000"]


def test_every_message_type_has_golden_bytes() -> None:
    assert {type(message) for message, _ in EXAMPLES} | {ActivationBatch} == set(AnyMessage.__args__)


@pytest.mark.parametrize("codec", list(WireCodec))
def test_a_batch_comes_back_as_it_was_sent(codec: WireCodec) -> None:
    random = np.random.default_rng(1)
    samples = [
        EncodedSample(
            ordinal=i,
            role=Role.VALIDATION if i % 2 else Role.TRAIN,
            rows=encode_rows(random.normal(size=(1 + i, 70)).astype(np.float32), codec, int4_for(codec, 70)),
            label=i,
        )
        for i in range(5)
    ]
    envelope = decode([bytes(frame) for frame in encode(*pack(BUNDLE, samples))])
    assert isinstance(envelope.message, ActivationBatch)
    found = unpack(envelope.message, envelope.buffers, codec=codec, hidden=70, with_targets=False)
    for before, after in zip(samples, found, strict=True):
        assert (after.ordinal, after.role, after.label) == (before.ordinal, before.role, before.label)
        assert np.array_equal(after.rows.rows, before.rows.rows)
        assert np.array_equal(after.rows.scales, before.rows.scales)
        assert after.nbytes == before.nbytes


@pytest.mark.parametrize("codec", list(WireCodec))
@pytest.mark.parametrize("with_targets", [False, True])
def test_rows_are_packed_and_never_padded(codec: WireCodec, with_targets: bool) -> None:
    lengths = [3, 1, 200]
    samples = [
        EncodedSample(
            ordinal=i,
            role=Role.TRAIN,
            rows=encode_rows(np.ones((n, 10), dtype=np.float32), codec, int4_for(codec, 10)),
            targets=np.zeros(n, dtype=np.int32) if with_targets else None,
        )
        for i, n in enumerate(lengths)
    ]
    _, buffers = pack(BUNDLE, samples)
    assert sum(buffer.nbytes for buffer in buffers) == sum(sample.nbytes for sample in samples)
    assert all(buffer.shape[0] == sum(lengths) for buffer in buffers)


def test_buffers_that_do_not_fit_the_batch_are_refused_by_name() -> None:
    batch, (rows, scales, targets) = small_batch()
    options = {"codec": WireCodec.INT8, "hidden": 3, "with_targets": True}
    unpack(batch, (rows, scales, targets), **options)
    for wrong in (
        (rows, scales),
        (rows[:1], scales, targets),
        (rows, scales.astype(np.float16), targets),
        (rows, scales, targets[:1]),
        (rows.astype(np.float32), scales, targets),
    ):
        with pytest.raises(MalformedMessage, match="needs"):
            unpack(batch, wrong, **options)
    with pytest.raises(MalformedMessage, match="rows are"):
        unpack(batch, (rows, scales, targets), codec=WireCodec.INT8, hidden=4, with_targets=True)


def test_int4_buffers_that_do_not_fit_the_batch_are_refused_by_name() -> None:
    encoded = encode_rows(np.ones((2, 200), dtype=np.float32), WireCodec.INT4, int4_for(WireCodec.INT4, 200))
    batch, (rows, scales) = pack(BUNDLE, [EncodedSample(ordinal=0, role=Role.TRAIN, rows=encoded, label=0)])
    options = {"codec": WireCodec.INT4, "hidden": 200, "with_targets": False}
    unpack(batch, (rows, scales), **options)
    for wrong in ((rows[:, 1:], scales), (rows.view(np.int8), scales), (rows, scales.astype(np.float32))):
        with pytest.raises(MalformedMessage, match="needs"):
            unpack(batch, wrong, **options)
    with pytest.raises(MalformedMessage, match=r"rows are uint8 \[2, 102\]; this batch needs uint8 \[2, 99\]"):
        unpack(batch, (rows, scales), **{**options, "hidden": 196})


def test_a_batch_larger_than_a_header_or_buffer_may_be_cannot_be_encoded() -> None:
    huge = np.broadcast_to(np.int8(0), (limits.MAX_BUFFER_BYTES + 1, 1))
    with pytest.raises(MalformedMessage, match="a buffer of"):
        encode(Ping(), [huge])


PING = b'{"buffers":[],"message":{"type":"ping"}}'


def header_with_buffers(*specs: object) -> bytes:
    return msgspec.json.encode({"buffers": specs, "message": {"type": "ping"}})


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [MAGIC],
        [b"", PING],
        [b"SFZ", PING],
        [b"SFZ\x02", PING],
        [b"SFZ\x01\x00", PING],
        [b"HTTP", PING],
        [MAGIC, b""],
        [MAGIC, b"\xff\xfe"],
        [MAGIC, b"[" * 100_000],
        [MAGIC, b" " * (limits.MAX_HEADER_BYTES + 1)],
        [MAGIC, b'{"buffers":[],"message":{"type":"ping","extra":1}}'],
        [MAGIC, b'{"buffers":[],"message":{"type":"unknown"}}'],
        [MAGIC, b'{"buffers":[],"message":{"type":"ping"},"extra":1}'],
        [MAGIC, PING, b"stray"],
        [MAGIC, PING, *[b""] * 10],
        [MAGIC, header_with_buffers({"dtype": "int8", "shape": [3]})],
        [MAGIC, header_with_buffers({"dtype": "int8", "shape": [3]}), b"1234"],
        [MAGIC, header_with_buffers({"dtype": "object", "shape": [1]}), b"12345678"],
        [MAGIC, header_with_buffers({"dtype": "int8", "shape": [-1]}), b""],
        [MAGIC, header_with_buffers({"dtype": "int8", "shape": []}), b"1"],
        [MAGIC, header_with_buffers({"dtype": "int8", "shape": [1, 1, 1]}), b"1"],
        [MAGIC, header_with_buffers({"dtype": "float32", "shape": [2**31, 2**31]}), b""],
        [MAGIC, header_with_buffers({"dtype": "int8", "shape": [2**31]}), b""],
        [MAGIC, header_with_buffers(*[{"dtype": "int8", "shape": [0]}] * 4), b"", b"", b"", b""],
    ],
    ids=range(25),
)  # fmt: skip
def test_frames_that_encode_never_makes_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        decode(frames)


def test_an_empty_buffer_is_fine() -> None:
    envelope = decode([MAGIC, header_with_buffers({"dtype": "float32", "shape": [0, 5]}), b""])
    assert envelope.buffers[0].shape == (0, 5)


def test_buffers_are_views_of_what_was_received() -> None:
    frame = bytearray(b"\x01\x02")
    envelope = decode([MAGIC, header_with_buffers({"dtype": "int8", "shape": [2]}), frame])
    frame[0] = 9
    assert envelope.buffers[0].tolist() == [9, 2]


def is_message_or_refused(frames: list[bytes]) -> None:
    try:
        found = decode(frames)
    except MalformedMessage:
        return
    assert isinstance(found, Envelope)


@given(st.lists(st.binary(max_size=200), max_size=7))
def test_any_frames_give_a_message_or_are_refused(frames: list[bytes]) -> None:
    is_message_or_refused(frames)


@given(header=st.binary(max_size=400), buffers=st.lists(st.binary(max_size=40), max_size=4))
@example(header=b'{"message":{"type":"ping"},"buffers":[{"dtype":"int8","shape":[1e400]}]}', buffers=[b"1"])
@example(header=b'{"message":{"type":"ack","verdicts":[],"credit_bytes":1}}', buffers=[])
def test_any_header_behind_the_magic_gives_a_message_or_is_refused(header: bytes, buffers: list[bytes]) -> None:
    is_message_or_refused([MAGIC, header, *buffers])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(message=st.dictionaries(st.sampled_from([
    "type", "samples", "bundle_id", "verdicts", "credit_bytes", "code", "detail", "retry_after_s", "protocol", "ordinal",
]), JSON | st.sampled_from(["ping", "batch", "ack", "hello", "refusal", "welcome"])), buffers=JSON)  # fmt: skip
def test_any_json_gives_a_message_or_is_refused(message: dict[str, object], buffers: object) -> None:
    is_message_or_refused([MAGIC, msgspec.json.encode({"message": message, "buffers": buffers})])


@given(index=st.integers(0, 10_000), value=st.integers(0, 255), frame=st.integers(0, 4))
def test_one_changed_byte_of_a_real_batch_gives_a_message_or_is_refused(index: int, value: int, frame: int) -> None:
    frames = [bytearray(part) for part in encode(*small_batch())]
    changed = frames[frame % len(frames)]
    changed[index % len(changed)] = value
    is_message_or_refused([bytes(part) for part in frames])


@given(
    ordinal=st.integers(0, 2**53 - 1),
    tokens=st.integers(1, limits.MAX_TOKENS_PER_SAMPLE),
    label=st.none() | st.integers(0, limits.MAX_LABELS - 1),
    role=st.sampled_from(Role),
)
def test_every_valid_sample_header_round_trips(ordinal: int, tokens: int, label: int | None, role: Role) -> None:
    batch = ActivationBatch(
        bundle_id=BUNDLE, samples=(SampleHeader(ordinal=ordinal, tokens=tokens, role=role, label=label),)
    )
    assert decode([bytes(frame) for frame in encode(batch)]).message == batch


@pytest.mark.parametrize(
    "changed",
    [
        {"device": "has space"}, {"device": "pi\n"}, {"outbox": "A" * 32}, {"bundle_id": "ab"}, {"self_test_error": -1.0},
        {"self_test_error": 1e9}, {"waiting_samples": -1}, {"waiting_samples": 2**60}, {"software": "x" * 300},
    ],
)  # fmt: skip
def test_a_hello_out_of_range_is_refused(changed: dict[str, object]) -> None:
    hello = msgspec.structs.replace(EXAMPLES[0][0], **changed)
    with pytest.raises(MalformedMessage):
        decode([MAGIC, msgspec.json.encode(Header(message=hello))])


def test_the_largest_batch_and_ack_fit_the_header_limit() -> None:
    many = range(2**53 - limits.MAX_SAMPLES_PER_BATCH, 2**53)
    headers = tuple(SampleHeader(ordinal=i, tokens=32_768, role=Role.VALIDATION, label=9_999) for i in many)
    encode(ActivationBatch(bundle_id=BUNDLE, samples=headers))
    worst = tuple(Rejected(i, RejectionCode.NOT_FINITE, "x" * 256) for i in many)
    encode(Ack(verdicts=worst, credit_bytes=1 << 40))
