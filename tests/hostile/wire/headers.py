"""Messages that are none: wrong frames, wrong headers, sizes that lie. None of them needs more than a TCP connection."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from hostile.wire.attacks import Frames, on_server
from hostile.wire.peers import BUNDLE_ID, Mallory, headed, header, hello, sample
from sf_contract.frames import MAGIC, encode
from sf_contract.limits import KIB, MAX_BUFFER_BYTES, MAX_HEADER_BYTES, MIB
from sf_contract.messages import (
    Ack,
    ActivationBatch,
    FinishNoted,
    Pong,
    Refusal,
    RefusalCode,
    Role,
    SampleHeader,
    Stored,
    Welcome,
)

MALFORMED = RefusalCode.MALFORMED
PING = header({"type": "ping"})


@on_server(MALFORMED, has_greeted=False)
def wrong_magic(mallory: Mallory) -> Iterator[Frames]:
    """A scanner that speaks something else must not reach the JSON parser: the first frame is compared before anything."""
    yield [b"GET / HTTP/1.1", PING]
    yield [b"", PING]
    yield [MAGIC + b"\0", PING]
    yield [MAGIC[:3], PING]


@on_server(MALFORMED, has_greeted=False)
def other_version(mallory: Mallory) -> Iterator[Frames]:
    """A device claims an old version, hoping for an old parser: there is one version, and the answer names both."""
    for version in (0, 2, 255):
        yield [b"SFZ" + bytes([version]), PING]


@on_server(MALFORMED, has_greeted=False)
def too_few_frames(mallory: Mallory) -> Iterator[Frames]:
    """Indexing into missing frames would be a crash; the number of frames is checked first."""
    yield []
    yield [MAGIC]


@on_server(MALFORMED)
def a_thousand_frames(mallory: Mallory) -> Iterator[Frames]:
    """Many small frames cost more than their bytes: the router keeps six of them, and more than five are no message."""
    yield headed(PING, *[b""] * 998)


@on_server(MALFORMED)
def deep_nesting(mallory: Mallory) -> Iterator[Frames]:
    """A recursive parser overflows its stack on brackets in brackets; ours stops with an error, and that is translated."""
    yield headed(b"[" * 200_000)
    yield headed(b'{"message":' * 20_000)
    yield headed(b'{"buffers":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@on_server(MALFORMED)
def a_header_that_is_too_long(mallory: Mallory) -> Iterator[Frames]:
    """A header of megabytes would be parsed for long: its length is checked before a byte of it is looked at."""
    yield headed(b" " * MAX_HEADER_BYTES + PING)


@on_server(MALFORMED)
def huge_numbers(mallory: Mallory) -> Iterator[Frames]:
    """Converting 200,000 digits takes quadratic time in a naive parser; ours gives up on numbers that fit no field."""
    digits = b"9" * 200_000
    yield headed(b'{"message":{"type":"ping"},"buffers":[{"dtype":"int8","shape":[' + digits + b"]}]}", b"x")
    yield headed(header({"type": "welcome"}).replace(b'"welcome"', b'"welcome","credit_bytes":' + digits))
    yield headed(b'{"message":{"type":"ping"},"buffers":[{"dtype":"int8","shape":[1e400]}]}', b"x")
    yield headed(b'{"message":{"type":"ping"},"buffers":[{"dtype":"int8","shape":[-0.5]}]}', b"x")
    yield headed(b'{"message":{"type":"ping"},"buffers":[{"dtype":"int8","shape":[NaN]}]}', b"x")


@on_server(Pong)
def the_same_key_twice(mallory: Mallory) -> Iterator[Frames]:
    """Two parsers that take different ones of two keys can be played against each other. There is only one parser here, and
    whatever it takes is checked like any other message: the second `message`, a ping."""
    yield headed(b'{"message":{"type":"pong"},"message":{"type":"ping"}}')


@on_server(MALFORMED)
def the_type_twice(mallory: Mallory) -> Iterator[Frames]:
    """The same with the tag that chooses the message: fields are checked against the one message that it finally is."""
    yield headed(b'{"message":{"type":"ping","type":"pong"}}')
    yield headed(b'{"message":{"type":"pong","credit_bytes":1,"type":"welcome"}}')


@on_server(MALFORMED)
def unknown_fields(mallory: Mallory) -> Iterator[Frames]:
    """A field that is ignored today and obeyed by a later version would be a way to smuggle: unknown fields are refused."""
    yield headed(header({"type": "ping", "admin": True}))
    yield headed(b'{"message":{"type":"ping"},"compress":"zip"}')
    yield headed(b'{"message":{"type":"ping"},"buffers":[{"dtype":"int8","shape":[1],"offset":9}]}', b"x")


@on_server(MALFORMED)
def a_field_name_that_a_terminal_obeys(mallory: Mallory) -> Iterator[Frames]:
    """The operator's terminal shows why a message was refused. A field name made of escape sequences would clear it, and a line
    feed would forge a line of the log; both are written out."""
    yield headed(header({"type": "ping", "\x1b[2J\x1b]0;owned\x07\nsf-server ingest: all is well\u202e": 1}))


@on_server(MALFORMED)
def a_field_name_without_end(mallory: Mallory) -> Iterator[Frames]:
    """The answer quotes the name of an unknown field; it is cut, so that it fits an answer."""
    yield headed(header({"type": "ping", "x" * 200_000: 1}))


@on_server(MALFORMED)
def text_that_is_no_text(mallory: Mallory) -> Iterator[Frames]:
    """Bytes that are no UTF-8, and halves of UTF-16 pairs, are strings that fail only when they are written somewhere."""
    yield headed(b'{"message":{"type":"ping\xff\xfe"}}')
    yield headed(b"\xef\xbb\xbf" + PING)
    yield headed(PING.decode().encode("utf-16"))
    good = encode(hello("mallory"))[1]
    yield headed(bytes(good).replace(b'"mallory"', b'"\\ud800"'))
    yield headed(bytes(good).replace(b'"mallory"', b'"mall\\u0000ory"'))


@on_server(MALFORMED)
def no_message_at_all(mallory: Mallory) -> Iterator[Frames]:
    """Every kind of JSON that is no header."""
    for raw in (b"", b"null", b"[]", b"{}", b'"ping"', b"0", b'{"message":null}', b'{"message":{}}', b'{"message":[]}'):
        yield headed(raw)
    for kind in ("", "PING", "ping ", "batch\0", "__class__"):
        yield headed(header({"type": kind}))
    yield headed(b'{"message":{"type":7}}')


@on_server(MALFORMED)
def sizes_without_bytes(mallory: Mallory) -> Iterator[Frames]:
    """A header announces gigabytes and sends nothing, so that the receiver sets the memory aside: a buffer is a view of the
    frame that came, and sizes are compared before that."""
    for shape in ([2**31], [2**31, 2**31], [MAX_BUFFER_BYTES], [1, 2**31]):
        yield headed(header({"type": "ping"}, [{"dtype": "float32", "shape": shape}]), b"")


@on_server(MALFORMED)
def shapes_that_overflow(mallory: Mallory) -> Iterator[Frames]:
    """Products that wrap around in 64 bits would make a huge shape look small; numbers here have no such end."""
    yield headed(header({"type": "ping"}, [{"dtype": "int8", "shape": [2**32, 2**32]}]), b"")
    yield headed(header({"type": "ping"}, [{"dtype": "int8", "shape": [2**63]}]), b"")
    yield headed(header({"type": "ping"}, [{"dtype": "int8", "shape": [-1]}]), b"")


@on_server(MALFORMED)
def empty_and_strange_shapes(mallory: Mallory) -> Iterator[Frames]:
    """Nothing times two billion is nothing: no bytes are due, and none may be used as if they were."""
    batch = encode(ActivationBatch(bundle_id=BUNDLE_ID, samples=_headers(3)))[1]
    for shape in ([0, 2**31], [2**31, 0], [0]):
        rows = b'{"dtype":"int8","shape":' + str(shape).encode() + b"}"
        yield headed(
            bytes(batch).replace(b'"buffers":[]', b'"buffers":[' + rows + b',{"dtype":"float32","shape":[0,1]}]'),
            b"",
            b"",
        )
    for shape in ([], [1, 1, 1], [[1]], ["1"], None):
        yield headed(header({"type": "ping"}, [{"dtype": "int8", "shape": shape}]), b"x")


@on_server(MALFORMED)
def strange_dtypes(mallory: Mallory) -> Iterator[Frames]:
    """NumPy knows dtypes that run code when they are read, or hold pointers; five names are allowed and looked up."""
    for dtype in ("object", "O", ">f4", "float64", "V8", "datetime64[s]", "(2,3)f4", "", None, 3):
        yield headed(header({"type": "ping"}, [{"dtype": dtype, "shape": [1]}]), b"12345678")


@on_server(MALFORMED)
def more_or_fewer_buffers_than_announced(mallory: Mallory) -> Iterator[Frames]:
    """A buffer that nobody announced, or that is missing, must not shift the meaning of the others."""
    rows, scales = mallory.sends(sample(0))[2:]
    good = mallory.sends(sample(0))[1]
    yield headed(bytes(good), rows)
    yield headed(bytes(good), rows, scales, b"")
    yield headed(bytes(good), scales, rows)
    yield headed(header({"type": "ping"}, [{"dtype": "int8", "shape": [0]}] * 4), b"", b"", b"", b"")


@on_server(MALFORMED)
def buffers_where_none_belong(mallory: Mallory) -> Iterator[Frames]:
    """64 MiB behind a ping would pass a check that looks at batches only."""
    yield headed(header({"type": "ping"}, [{"dtype": "int8", "shape": [1 * MIB]}]), bytes(1 * MIB))


@on_server(MALFORMED)
def words_of_a_server(mallory: Mallory) -> Iterator[Frames]:
    """A device that sends what only servers send wants to find code that handles it."""
    yield mallory.says(Welcome(software="x", credit_bytes=1))
    yield mallory.says(Refusal(code=RefusalCode.CLOSED, detail="go home"))
    yield mallory.says(Ack(verdicts=(Stored(0),), credit_bytes=1))
    yield mallory.says(FinishNoted())
    yield mallory.says(Pong())


@on_server(MALFORMED)
def numbers_out_of_range(mallory: Mallory) -> Iterator[Frames]:
    """Every number has a range, and its ends are part of the message's type."""
    good = bytes(encode(hello("mallory"))[1])
    for field in (
        b'"self_test_error":1e400', b'"self_test_error":-1', b'"self_test_error":NaN', b'"waiting_samples":-1',
        b'"waiting_samples":9007199254740992', b'"waiting_samples":1.5', b'"waiting_samples":true',
        b'"waiting_samples":"1"', b'"protocol":1e30', b'"protocol":null',
    ):  # fmt: skip
        name = field.partition(b":")[0]
        yield headed(re.sub(name + b":[^,}]+", field, good))


@on_server(MALFORMED)
def too_much_text(mallory: Mallory) -> Iterator[Frames]:
    """Text that is stored or shown has a length; a device's name has a form, so that it can be a file's name."""
    yield headed(_greeting(software="x" * 257))
    for name in ("../phone", "pho ne", "phone\n", "", ".phone", "p" * 65, "phöne", "phone/", "\x00"):
        yield headed(_greeting(device=name))
    for outbox in ("0" * 31, "0" * 33, "G" * 32, "0" * 31 + "\n"):
        yield headed(_greeting(outbox=outbox))


@on_server(MALFORMED)
def an_activity_that_a_terminal_obeys(mallory: Mallory) -> Iterator[Frames]:
    """`sf-server devices` shows what devices say they are doing, on the operator's terminal."""
    for activity in ("\x1b[2J", "paused\nphone is refused", "x" * 1000, "", "\u202epaused"):
        yield headed(header({"type": "ping", "activity": activity}))


@on_server(Pong, memory_bytes=4 * MIB)
def a_ping_with_all_the_room_there_is(mallory: Mallory) -> Iterator[Frames]:
    """White space up to the limit is allowed, and costs nothing: strings are not kept."""
    for _ in range(100):
        yield headed(PING[:-1] + b" " * (MAX_HEADER_BYTES - len(PING)) + b"}")


@on_server(MALFORMED, memory_bytes=4 * MIB)
def many_malformed_messages(mallory: Mallory) -> Iterator[Frames]:
    """Each of them is answered; the operator reads one line about them, and nothing is remembered of them but a number."""
    for number in range(3_000):
        yield headed(header({"type": f"nonsense {number}"}), b"x" * KIB)


def _headers(tokens: int) -> tuple[SampleHeader, ...]:
    return (SampleHeader(ordinal=1, tokens=tokens, role=Role.TRAIN, label=0),)


def _greeting(**changes: object) -> bytes:
    return header({**msgspec.to_builtins(hello("mallory")), **changes})
