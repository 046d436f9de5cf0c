"""Asking a prediction server: what is lost is asked again, what is wrong is named, and nothing waits for ever."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sf_contract.activations import pack_rows
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.errors import (
    MalformedMessage,
    NotAuthorised,
    RefusedByServer,
    ServerUnreachable,
    SplitFrozenError,
    WrongServerKey,
)
from sf_contract.frames import RawFrame, decode, encode
from sf_contract.given_texts import given_texts
from sf_contract.messages import (
    AnyMessage,
    Approval,
    ClassProbability,
    Pong,
    PredictAnswer,
    Predicted,
    PredictRequest,
    Refusal,
    RefusalCode,
    Welcome,
)
from sf_contract.records import BadRow, Row
from sf_edge.link.events import Endpoints, LinkEvent
from sf_edge.link.first_contact import FirstContact
from sf_edge.main import main
from sf_edge.predict.conversation import ASK_AGAIN_S, Conversation, Patience, check_contact
from support.tiny_bundle import write_tiny_bundle

ROWS = [encode_rows(np.ones((n, 6), np.float32), WireCodec.INT8) for n in (2, 1)]
REQUEST = PredictRequest(device="pi", bundle_id="ab" * 32, number=5, tokens=(2, 1))
LIKELY = Predicted((ClassProbability(1, 0.9),))
ANSWER = PredictAnswer(number=5, predictions=(LIKELY, LIKELY))
LATER = Refusal(RefusalCode.NOT_AUTHORISED, "gone", 5.0)
Happening = AnyMessage | LinkEvent | list[bytes]


class ScriptedLink:
    """A link to which things happen at times, on a clock that only moves while somebody waits.

    Args:
        script: what happens after the n-th sending (0: before any), after so many seconds.
    """

    def __init__(self, script: Sequence[tuple[int, float, Happening]]) -> None:
        self.ends = Endpoints(address="tcp://server:1")
        self.now_s = 100.0
        self.sent: list[AnyMessage] = []
        self.sent_s: list[float] = []
        self._script = list(script)
        self._due: list[tuple[float, Happening]] = []

    def connect(self) -> None:
        raise AssertionError("the link is connected already")

    def send(self, frames: Sequence[RawFrame]) -> None:
        self.sent.append(decode([bytes(frame) for frame in frames]).message)
        self.sent_s.append(self.now_s - 100.0)
        self._due += [(self.now_s + after, what) for n, after, what in self._script if n == len(self.sent)]

    def receive(self) -> list[bytes] | None:
        return self._take(lambda what: not isinstance(what, LinkEvent))

    def events(self) -> list[LinkEvent]:
        found: list[LinkEvent] = []
        while (event := self._take(lambda what: isinstance(what, LinkEvent))) is not None:
            found.append(event)
        return found

    def wait(self, timeout_s: float, *, wake_descriptors: Sequence[int]) -> None:
        assert timeout_s > 0, "a busy loop"
        soonest = min((at for at, _ in self._due), default=float("inf"))
        self.now_s = max(self.now_s, min(self.now_s + timeout_s, soonest))

    def _take(self, is_wanted: Callable[[Happening], bool]):
        for index, (at, what) in enumerate(self._due):
            if at <= self.now_s and is_wanted(what):
                del self._due[index]
                if isinstance(what, LinkEvent | list):
                    return what
                return [bytes(frame) for frame in encode(what)]
        return None


def _ask(link: ScriptedLink, timeout_s: float = 10.0) -> PredictAnswer:
    patience = Patience(timeout_s=timeout_s, now_s=lambda: link.now_s)
    return Conversation(link, patience).ask(REQUEST, pack_rows(ROWS))


def test_a_request_is_sent_once_when_it_is_answered():
    link = ScriptedLink([(1, 0.5, ANSWER)])
    assert _ask(link) == ANSWER
    assert link.sent == [REQUEST]


def test_a_lost_answer_is_asked_for_again():
    link = ScriptedLink([(2, 0.1, ANSWER)])
    assert _ask(link) == ANSWER
    assert link.sent_s == [0, ASK_AGAIN_S]


def test_after_a_broken_connection_it_asks_again_at_once():
    link = ScriptedLink([(1, 0.5, LinkEvent.DOWN), (1, 1.0, LinkEvent.UP), (2, 0.1, ANSWER)])
    assert _ask(link) == ANSWER
    assert link.sent_s == [0, 1.0]


def test_a_server_that_asks_for_patience_gets_it():
    busy = Refusal(code=RefusalCode.OVER_CREDIT, detail="too fast", retry_after_s=2.0)
    link = ScriptedLink([(1, 0.5, busy), (2, 0.1, ANSWER)])
    assert _ask(link) == ANSWER
    assert link.sent_s == [0, 2.5]


def test_answers_to_earlier_requests_and_other_messages_are_passed_over():
    old = PredictAnswer(number=4, predictions=(LIKELY,))
    link = ScriptedLink([(1, 0.1, old), (1, 0.1, Pong()), (1, 0.2, ANSWER)])
    assert _ask(link) == ANSWER


def test_a_server_that_talks_without_end_does_not_keep_it_for_ever():
    class Flooded(ScriptedLink):
        def receive(self) -> list[bytes] | None:
            self.now_s += 0.01
            return [bytes(frame) for frame in encode(Pong())]

    link = Flooded([])
    with pytest.raises(ServerUnreachable, match="within 10 s"):
        _ask(link)
    assert link.now_s - 100.0 < 11


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ([], ServerUnreachable, "did not answer within 10 s"),
        ([(1, 1.0, LinkEvent.DOWN)], ServerUnreachable, "the connection broke"),
        ([(1, 1.0, LinkEvent.NOT_OURS)], WrongServerKey, "no SplitFrozen server"),
        ([(1, 1.0, Refusal(RefusalCode.BUNDLE, "another bundle"))], RefusedByServer, "another bundle"),
        ([(1, 1.0, Refusal(RefusalCode.MALFORMED, "no predictions here", 1.0))], MalformedMessage, "no predictions"),
        ([(n, 1.0, LATER) for n in range(1, 9)], ServerUnreachable, "within"),
        ([(1, 1.0, PredictAnswer(5, (LIKELY,)))], MalformedMessage, "1 predictions for 2 texts"),
        ([(1, 1.0, [b"SFZ\x01", b"{"])], MalformedMessage, "not a message"),
    ],
)  # fmt: skip
def test_an_answer_that_does_not_come_or_is_none_is_named_within_the_time(
    script: list[tuple[int, float, Happening]], kind: type[SplitFrozenError], said: str
):
    link = ScriptedLink(script)
    with pytest.raises(kind, match=said):
        _ask(link)
    assert link.now_s - 100.0 <= 10.0


@pytest.mark.parametrize(
    ("contact", "kind"),
    [
        (FirstContact(handshake_done=False, answer=None, trouble=LinkEvent.NO_LISTENER), ServerUnreachable),
        (FirstContact(handshake_done=True, answer=None, trouble=None), ServerUnreachable),
        (FirstContact(handshake_done=True, answer=Welcome("x", 1), trouble=None), ServerUnreachable),
        (FirstContact(True, Refusal(RefusalCode.NOT_AUTHORISED, "no"), None), NotAuthorised),
        (FirstContact(True, Refusal(RefusalCode.SELF_TEST, "no"), None), RefusedByServer),
    ],
)
def test_a_first_contact_that_is_no_approval_ends_the_command(contact: FirstContact, kind: type[SplitFrozenError]):
    with pytest.raises(kind):
        check_contact(contact, Endpoints(address="tcp://server:1"), timeout_s=5)


def test_an_approval_lets_it_go_on():
    approval = FirstContact(handshake_done=True, answer=Approval("x", 1.0), trouble=None)
    check_contact(approval, Endpoints(address="tcp://server:1"), timeout_s=5)


def test_texts_come_from_the_command_line_else_from_the_input():
    lines = io.StringIO("one\n\n two \n")
    assert list(given_texts(["a"], fields=["text"], path=None, lines=lines)) == [Row(1, {"text": "a"})]
    found = list(given_texts([], fields=["text"], path=None, lines=lines))
    assert found == [Row(1, {"text": "one"}), Row(2, {"text": " two "})]


def test_texts_of_several_columns_are_json_objects():
    both = json.dumps({"a": "x", "b": 3})
    good, plain, listed = given_texts([both, "x", "[1]"], fields=["a", "b"], path=None, lines=())
    assert good == Row(1, {"a": "x", "b": "3"})
    assert isinstance(plain, BadRow)
    assert isinstance(listed, BadRow)
    assert "columns a, b" in plain.reason


def test_nobody_at_the_address_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    argv = ["predict", "--bundle", str(bundle), "--server", f"ipc://{tmp_path}/nobody", "play the music"]
    assert main([*argv, "--timeout-s", "5"]) == 16
    assert "nobody accepts connections there" in capsys.readouterr().err


def test_a_link_over_a_network_must_be_encrypted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert main(["predict", "--bundle", str(bundle), "--server", "tcp://lab:5555", "play"]) == 2
    assert "must be encrypted" in capsys.readouterr().err


def test_the_settings_file_of_run_serves_predict_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    config = tmp_path / "edge.toml"
    config.write_text(
        f"bundle = {json.dumps(str(bundle))}\nserver = 'ipc://{tmp_path}/nobody'\ndata = 'x.jsonl'\nholdout = 0.1\n"
    )
    assert main(["predict", "--config", str(config), "--timeout-s", "5", "play"]) == 16
    capsys.readouterr()
    assert main(["predict", "--config", str(config), "--classes", "17", "play"]) == 2
    assert "--classes" in capsys.readouterr().err
