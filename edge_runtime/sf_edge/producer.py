"""From a row of the data file to a sample: tokens, activations at the cut, role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sf_contract.activations import TARGET_DTYPE, EncodedSample
from sf_contract.codec import EncodedRows, bytes_per_token, row_bytes
from sf_contract.errors import UsageError
from sf_contract.hashes import sha256
from sf_contract.limits import MAX_BUFFER_BYTES
from sf_contract.manifest import Manifest, Task, TaskSpec
from sf_contract.messages import Role
from sf_contract.records import BadRow, Record, Row
from sf_contract.samples import LABEL_COLUMN, TextTokenizer, UnusableRecord, fill_template, tokenize
from sf_edge.sources.reading_rules import labels_text

_HASH_VALUES: Final = 2.0**64


class RowsRunner(Protocol):
    """Token sequences to encoded activations; `FrontEnd` is one."""

    def run(self, sequences: Sequence[Sequence[int]]) -> list[EncodedRows]:
        """Activations of each sequence."""


@dataclass(frozen=True, slots=True)
class RolePolicy:
    """Which samples are for validation: all or none by `role`, or the fraction `holdout` of the texts."""

    role: Role = Role.TRAIN
    holdout: float = 0.0

    def role_of(self, text: str) -> Role:
        """The role of a text; equal texts always have the same one."""
        if self.holdout == 0.0:
            return self.role
        digest = sha256(text.encode("utf-8", "surrogatepass")).digest()
        drawn = int.from_bytes(digest[:8], "big") / _HASH_VALUES
        return Role.VALIDATION if drawn < self.holdout else self.role


@dataclass(frozen=True, slots=True, eq=False)
class Produced:
    """A sample, and whether its text was cut to fit."""

    sample: EncodedSample
    was_cut: bool


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that gives no sample, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotFinite:
    """A row whose activations are not finite numbers."""

    reason: str = "the front end gave activations that are not finite numbers"


class Producer:
    """Makes samples.

    Args:
        spec: task, template and labels.
        max_tokens: longer texts are cut.
        policy: decides the role.
        label: the label of rows that have none; None skips them.
    """

    def __init__(
        self,
        *,
        spec: TaskSpec,
        tokenizer: TextTokenizer,
        front_end: RowsRunner,
        max_tokens: int,
        policy: RolePolicy,
        label: str | None = None,
    ) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._front_end = front_end
        self._max_tokens = max_tokens
        self._policy = policy
        self._label = label

    @property
    def cure(self) -> str:
        """What to do when no row gave a sample."""
        if self._spec.task is Task.CAUSAL_LM:
            return "correct the rows named above"
        return f"correct the rows named above (the bundle's labels are {labels_text(self._spec.labels)})"

    def produce(self, row: Row | BadRow, *, ordinal: int) -> Produced | Unusable | NotFinite:
        """The sample of a row, numbered `ordinal`; one forward pass unless the row is unusable."""
        if isinstance(row, BadRow):
            return Unusable(row.reason)
        try:
            return self._compute(self._with_label(row.record), ordinal)
        except UnusableRecord as problem:
            return Unusable(str(problem))

    def _with_label(self, record: Record) -> Record:
        if self._label is None or record.get(LABEL_COLUMN, "").strip():
            return record
        return {**record, LABEL_COLUMN: self._label}

    def _compute(self, record: Record, ordinal: int) -> Produced | NotFinite:
        tokenized = tokenize(record, self._spec, self._tokenizer, max_tokens=self._max_tokens)
        rows = self._front_end.run([tokenized.token_ids])[0]
        if not rows.is_finite():
            return NotFinite()
        sample = EncodedSample(
            ordinal=ordinal,
            role=self._policy.role_of(fill_template(self._spec.template.prompt, record)),
            rows=rows,
            label=tokenized.label,
            targets=tokenized.targets,
        )
        return Produced(sample=sample, was_cut=tokenized.was_cut)


def longest_sample_tokens(manifest: Manifest, wanted: int | None) -> int:
    """Tokens a sample may have: what was asked for, at most the bundle's.

    Raises:
        UsageError: more than the bundle's, or samples of that length would not fit a wire buffer.
    """
    geometry = manifest.geometry
    tokens = geometry.max_tokens if wanted is None else wanted
    if tokens > geometry.max_tokens:
        raise UsageError(
            f"--max-tokens {tokens} is more than the bundle's {geometry.max_tokens}",
            cure=f"give at most {geometry.max_tokens}, or export a bundle with more",
        )
    most = MAX_BUFFER_BYTES // row_bytes(manifest.wire_codec, geometry.hidden)
    if tokens > most:
        raise UsageError(
            f"samples of {tokens} tokens are larger than a message may be", cure=f"give --max-tokens {most} or less"
        )
    return tokens


def largest_sample_bytes(manifest: Manifest, tokens: int) -> int:
    """Payload bytes of a sample with this many tokens."""
    return tokens * (bytes_per_token(manifest.wire_codec, manifest.geometry.hidden) + TARGET_DTYPE.itemsize)
