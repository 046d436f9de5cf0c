"""`sf-edge predict`: opens everything, asks, prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta

from sf_contract import SOFTWARE
from sf_contract.activations import pack_rows
from sf_contract.answers import USUAL_CLASSES, LikelyClass, prediction_json, prediction_line
from sf_contract.bundle import Bundle
from sf_contract.codec import EncodedRows
from sf_contract.command import print_json, say
from sf_contract.errors import MalformedMessage, UsageError
from sf_contract.front_end import FrontEnd, open_front_end, run_self_test
from sf_contract.given_texts import given_texts
from sf_contract.limits import MAX_CLASSES_PER_TEXT, MAX_SHARED_BATCH_BYTES
from sf_contract.manifest import Task
from sf_contract.messages import PROTOCOL_VERSION, Predicted, PredictRequest, Rejected
from sf_contract.records import BadRow, Row
from sf_contract.samples import UnusableRecord, fill_template, template_fields, tokenize
from sf_contract.settings import resolve_settings
from sf_contract.signing import read_trust_list
from sf_contract.tokenizer import open_tokenizer
from sf_edge.bench.tuning_files import default_tuning_folder
from sf_edge.bundles.candidates import Acceptance
from sf_edge.bundles.choice import choose_bundle, this_place
from sf_edge.link.dealer import Link
from sf_edge.link.first_contact import make_contact
from sf_edge.link.security import LinkChoice, check_link, open_link_keys
from sf_edge.predict.conversation import Conversation, Patience, check_contact, inquiry_of
from sf_edge.settings import DeviceSettings, GivenText

TOGETHER: Final = 16
"""Texts of a file or of the command line in one request; lines of standard input go one by one."""


class PredictSettings(DeviceSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of `sf-edge predict`; those of `sf-edge run` that mean nothing here are accepted, so that both share a file."""

    bundle: GivenText
    server: GivenText
    classes: Annotated[int, Meta(ge=1, le=MAX_CLASSES_PER_TEXT)] = USUAL_CLASSES
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 10.0

    def link_choice(self) -> LinkChoice:
        """What was said about the link to the server."""
        return LinkChoice(address=self.server, key=self.key, server_key=self.server_key, insecure=self.insecure)


@dataclass(frozen=True, slots=True)
class Computed:
    """A text and its rows."""

    text: str
    rows: EncodedRows


Answered = tuple[str, Sequence[LikelyClass]] | str
"""A text with its likeliest classes, or why there is no answer."""


def run_predict(flags: dict[str, Any]) -> int:
    """Run the command with what the command line gave."""
    texts: list[str] = flags.pop("texts", [])
    config = flags.pop("config", None)
    data = flags.pop("data", None)
    path = None if config is None else Path(config)
    settings = resolve_settings(PredictSettings, toml_path=path, flags=flags)
    check_link(settings.link_choice())
    keys = open_link_keys(settings.link_choice())
    bundle = _bundle(settings)
    front_end = open_front_end(bundle, threads=settings.threads or 1)
    error = run_self_test(bundle, front_end)
    computer = _Computer(bundle, front_end, max_tokens=settings.max_tokens)
    rows = given_texts(texts, fields=computer.fields, path=None if data is None else Path(data), lines=sys.stdin)
    inquiry = inquiry_of(
        settings.device,
        protocol=PROTOCOL_VERSION,
        software=SOFTWARE,
        bundle_id=bundle.bundle_id,
        self_test_error=error,
    )
    with Link(settings.server, keys) as link:
        contact = make_contact(link, inquiry, timeout_s=settings.timeout_s, now_s=time.monotonic)
        check_contact(contact, link.ends, timeout_s=settings.timeout_s)
        conversation = Conversation(link, Patience(timeout_s=settings.timeout_s, now_s=time.monotonic))
        together = 1 if not texts and data is None else TOGETHER
        for answered in _answers(settings, bundle, conversation, computer.groups(rows, together)):
            _print(answered, as_json=settings.json)
    return 0


class _Computer:
    """Records to rows, as `sf-edge run` computes them."""

    def __init__(self, bundle: Bundle, front_end: FrontEnd, *, max_tokens: int | None) -> None:
        manifest = bundle.manifest
        self._spec = manifest.task
        self._front_end = front_end
        self._tokenizer = open_tokenizer(bundle)
        self._max_tokens = min(max_tokens or manifest.geometry.max_tokens, manifest.geometry.max_tokens)
        self.fields = template_fields(manifest.task.template.prompt)

    def groups(self, rows: Iterable[Row | BadRow], together: int) -> Iterator[list[Computed | str]]:
        """Texts that are asked about together: so many, as far as they fit into one message."""
        group: list[Computed | str] = []
        nbytes = 0
        for row in rows:
            computed = self._compute(row)
            size = 0 if isinstance(computed, str) else computed.rows.nbytes
            if group and (len(group) == together or nbytes + size > MAX_SHARED_BATCH_BYTES):
                yield group
                group, nbytes = [], 0
            group.append(computed)
            nbytes += size
            if len(group) == together:
                yield group
                group, nbytes = [], 0
        if group:
            yield group

    def _compute(self, row: Row | BadRow) -> Computed | str:
        if isinstance(row, BadRow):
            return f"line {row.line}: {row.reason}"
        try:
            sample = tokenize(row.record, self._spec, self._tokenizer, max_tokens=self._max_tokens, need_label=False)
            text = fill_template(self._spec.template.prompt, row.record)
        except UnusableRecord as problem:
            return f"line {row.line}: {problem}"
        return Computed(text, self._front_end.run([sample.token_ids])[0])


def _answers(
    settings: PredictSettings, bundle: Bundle, conversation: Conversation, groups: Iterable[Sequence[Computed | str]]
) -> Iterator[Answered]:
    for number, group in enumerate(groups):
        usable = [item for item in group if isinstance(item, Computed)]
        found: Iterator[Answered] = iter(())
        if usable:
            request = PredictRequest(
                device=settings.device,
                bundle_id=bundle.bundle_id,
                number=number,
                tokens=tuple(item.rows.tokens for item in usable),
                classes=settings.classes,
            )
            answer = conversation.ask(request, pack_rows([item.rows for item in usable]))
            found = map(_told, usable, answer.predictions, [bundle.manifest.task.labels] * len(usable))
        for item in group:
            yield item if isinstance(item, str) else next(found)


def _told(item: Computed, prediction: Predicted | Rejected, labels: Sequence[str]) -> Answered:
    if isinstance(prediction, Rejected):
        return f"{item.text}: {prediction.detail} ({prediction.code})"
    if any(found.label >= len(labels) for found in prediction.classes):
        raise MalformedMessage(f"the answer names a class that the bundle's {len(labels)} labels do not have")
    return item.text, [LikelyClass(labels[found.label], found.probability) for found in prediction.classes]


def _bundle(settings: PredictSettings) -> Bundle:
    trust = None if settings.trust is None else read_trust_list(Path(settings.trust).expanduser())
    chosen = choose_bundle(
        Path(settings.bundle).expanduser(), Acceptance(trust), place=this_place(default_tuning_folder()), say=say
    )
    task = chosen.bundle.manifest.task.task
    if task is not Task.TEXT_CLASSIFICATION:
        raise UsageError(
            f"the bundle is for {task.value}, and only class predictions go through the split",
            cure="complete prompts on the server, with sf-server generate",
        )
    return chosen.bundle


def _print(answered: Answered, *, as_json: bool) -> None:
    if isinstance(answered, str):
        error: Mapping[str, object] = {"error": answered}
        print_json(error) if as_json else print(f"(skipped: {answered})", flush=True)
    elif as_json:
        print_json(prediction_json(*answered))
    else:
        print(prediction_line(*answered), flush=True)
