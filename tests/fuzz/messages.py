"""Valid messages to start from, and ways to spoil them: everything is drawn from one seeded source of randomness."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import msgspec
import numpy as np

from sf_contract.activations import NO_TARGET, EncodedSample, pack, pack_rows
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.frames import MAGIC, Buffer, encode
from sf_contract.limits import MAX_HEADER_BYTES
from sf_contract.messages import (
    PROTOCOL_VERSION,
    Ack,
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
    Stored,
    Welcome,
)

BUNDLE: Final = "ab" * 32
Frames = list[bytes]

EXTREMES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**31 + 1, 2**32, 2**53 - 1, 2**53, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e300,
    "", "0", "x" * 300, "x" * 3000, "\x00", "\n", "\x1b[2J", "\u202e", "ping", "batch", "stored", "int8", "object", "é", [], {},
    [[]], [0], [1, 1], [2**31, 2**31], [0, 2**31], [-1], [1] * 300, {"type": "ping"}, {"dtype": "int8", "shape": [1]},
)  # fmt: skip


def samples(count: int, *, codec: WireCodec = WireCodec.INT8, hidden: int = 6, first: int = 0) -> list[EncodedSample]:
    """Good samples of one to four tokens."""
    return [_sample(number, codec, hidden) for number in range(first, first + count)]


@cache
def _sample(number: int, codec: WireCodec, hidden: int) -> EncodedSample:
    values = np.random.default_rng(number).normal(size=(1 + number % 4, hidden)).astype(np.float32)
    targets = np.array([NO_TARGET] * (number % 4) + [3], dtype=np.int32) if codec is WireCodec.FP16 else None
    label = None if targets is not None else number % 2
    return EncodedSample(ordinal=number, role=Role.TRAIN, rows=encode_rows(values, codec), label=label, targets=targets)


def valid_messages() -> list[Frames]:
    """At least one of each type, batches in several codecs."""
    hello = Hello(
        protocol=PROTOCOL_VERSION, software="sf 1", device="pi", outbox="01" * 16, bundle_id=BUNDLE,
        self_test_error=0.01, waiting_samples=3,
    )  # fmt: skip
    verdicts = (Stored(1), AlreadyStored(2), Rejected(3, RejectionCode.LABEL, "why"))
    plain: list[AnyMessage] = [
        hello, Welcome(software="sf 1", credit_bytes=1024), Ack(verdicts=verdicts, credit_bytes=7),
        Refusal(code=RefusalCode.STORE_FULL, detail="full", retry_after_s=2.5), FinishNoted(), Pong(), Ping(),
        Ping(activity="paused: hot"), Finished(samples=2, rejected=1, skipped_rows=0),
        Inquiry(protocol=PROTOCOL_VERSION, software="sf 1", device="pi", outbox="01" * 16, bundle_id=BUNDLE),
        Approval(software="sf 1", clock_s=1.5),
        PredictAnswer(number=3, predictions=(Predicted((ClassProbability(1, 0.5),)), Rejected(1, RejectionCode.SHAPE, "why"))),
    ]  # fmt: skip
    batches: list[tuple[AnyMessage, tuple[Buffer, ...]]] = [
        pack(BUNDLE, samples(count, codec=codec))
        for codec in (WireCodec.INT8, WireCodec.FP16, WireCodec.FP32)
        for count in (1, 5)
    ]
    batches += [predict_request(count, codec=codec) for codec in (WireCodec.INT8, WireCodec.FP32) for count in (1, 3)]
    every = [encode(message) for message in plain] + [encode(*batch) for batch in batches]
    return [[bytes(frame) for frame in frames] for frames in every]


def predict_request(
    count: int, *, codec: WireCodec = WireCodec.INT8, hidden: int = 6, bundle_id: str = BUNDLE, device: str = "pi"
) -> tuple[AnyMessage, tuple[Buffer, ...]]:
    """A good request for predictions on so many texts of one to four tokens."""
    texts = [sample.rows for sample in samples(count, codec=codec, hidden=hidden)]
    tokens = tuple(rows.tokens for rows in texts)
    return PredictRequest(device=device, bundle_id=bundle_id, number=count, tokens=tokens), pack_rows(texts)


def mutate(frames: Frames, chance: random.Random) -> Frames:
    """The same message, spoiled in one to three ways."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        frames = chance.choice(_MUTATIONS)(frames, chance)
    return frames


def _flip(frames: Frames, chance: random.Random) -> Frames:
    return _change(frames, chance, lambda raw: _flipped(raw, chance))


def _flipped(raw: bytes, chance: random.Random) -> bytes:
    if not raw:
        return raw
    changed = bytearray(raw)
    for _ in range(chance.choice((1, 1, 4))):
        changed[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncate(frames: Frames, chance: random.Random) -> Frames:
    return _change(frames, chance, lambda raw: raw[: chance.randint(0, len(raw))])


def _extend(frames: Frames, chance: random.Random) -> Frames:
    return _change(frames, chance, lambda raw: raw + chance.randbytes(chance.choice((1, 4, 100))))


def _cut_out(frames: Frames, chance: random.Random) -> Frames:
    def cut(raw: bytes) -> bytes:
        start = chance.randint(0, len(raw))
        return raw[:start] + raw[start + chance.randint(0, 20) :]

    return _change(frames, chance, cut)


def _repeat_part(frames: Frames, chance: random.Random) -> Frames:
    def repeat(raw: bytes) -> bytes:
        start = chance.randint(0, len(raw))
        stop = min(len(raw), start + chance.randint(0, 60))
        return raw[:stop] + raw[start:stop] * chance.choice((1, 2, 50)) + raw[stop:]

    return _change(frames, chance, repeat)


def _drop_frame(frames: Frames, chance: random.Random) -> Frames:
    index = chance.randrange(len(frames)) if frames else 0
    return frames[:index] + frames[index + 1 :]


def _repeat_frame(frames: Frames, chance: random.Random) -> Frames:
    index = chance.randrange(len(frames)) if frames else 0
    return frames[:index] + frames[index : index + 1] * chance.choice((2, 3, 1000)) + frames[index + 1 :]


def _shuffle_frames(frames: Frames, chance: random.Random) -> Frames:
    return chance.sample(frames, len(frames))


def _splice(frames: Frames, chance: random.Random) -> Frames:
    """Frames of one message behind those of another."""
    other = chance.choice(_VALID)
    return frames[: chance.randint(0, len(frames))] + other[chance.randint(0, len(other)) :]


def _change_header(frames: Frames, chance: random.Random) -> Frames:
    """Some value of the header replaced by an extreme one, removed, added, or copied from elsewhere in it."""
    try:
        header = msgspec.json.decode(frames[1])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
        return frames
    places = list(_places(header))
    if not places:
        return frames
    holder, key = chance.choice(places)
    match chance.randrange(4):
        case 0 | 1:
            holder[key] = chance.choice(EXTREMES)
        case 2:
            del holder[key]
        case _:
            other, other_key = chance.choice(places)
            holder[key] = other[other_key]
    try:
        raw = msgspec.json.encode(header)
    except RecursionError:  # a value was put into itself
        return frames
    return [frames[0], raw[: MAX_HEADER_BYTES + 1], *frames[2:]]


def _change_shape(frames: Frames, chance: random.Random) -> Frames:
    """Other shapes and dtypes for the buffers, some with as many bytes as before."""
    try:
        header = msgspec.json.decode(frames[1])
        specs = header["buffers"]
        spec = chance.choice(specs)
        size = len(chance.choice(frames[2:]))
        spec["shape"] = chance.choice(
            ([size], [1, size], [size, 1], [size // 4], [size // 2], [0, size], [2**31, 2**31], [])
        )
        spec["dtype"] = chance.choice(("int8", "uint8", "int32", "float16", "float32", "float64", "O"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError, KeyError, TypeError):
        return frames
    return [frames[0], msgspec.json.encode(header), *frames[2:]]


def _change(frames: Frames, chance: random.Random, change: Callable[[bytes], bytes]) -> Frames:
    if not frames:
        return [chance.randbytes(4)]
    index = chance.randrange(len(frames))
    return [*frames[:index], change(frames[index]), *frames[index + 1 :]]


def _places(value: Any) -> Any:
    """Every place in a JSON document where a value stands, as its holder and key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


_MUTATIONS: Final = (
    _flip, _truncate, _extend, _cut_out, _repeat_part, _drop_frame, _repeat_frame, _shuffle_frames, _splice,
    _change_header, _change_header, _change_header, _change_header, _change_shape,
)  # fmt: skip
_VALID: Final = valid_messages()
assert all(frames[0] == MAGIC for frames in _VALID)
