"""Settings of an export."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from sf_contract import limits
from sf_contract.codec import WireCodec
from sf_contract.manifest import Task

DEFAULT_MODEL = "openai-community/gpt2"
DEFAULT_ERROR = 0.03
DEFAULT_ERROR_INT4_ROWS = 0.06
DEFAULT_ERROR_INT4_EMBEDDING = 0.08
"""4-bit rows leave 5 %, a 4-bit embedding 6 %, before anything else is rounded."""
DEFAULT_ERROR_INT4_BOTH = 0.10


ColumnName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}\Z")]


class Quantize(enum.StrEnum):
    """What `--quantize` asks for."""

    AUTO = "auto"
    INT8 = "int8"
    NONE = "none"


class Target(enum.StrEnum):
    """Processors a bundle is made for."""

    ANY = "any"
    X86_64 = "x86_64"
    ARM64 = "arm64"


class EmbeddingBits(enum.StrEnum):
    """How the token embedding is kept."""

    INT8 = "int8"
    INT4 = "int4"


class ExportSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of an export.

    Attributes:
        split_layer: number of leading layers that run on the device; several make one bundle each.
        model: hub id, model folder or `.gguf` file.
        revision: hub branch, tag or commit.
        task: what the whole model is fine-tuned for.
        labels: class names, in index order.
        labels_from: a file that holds them: one per line, or a data file with a label column.
        template: how a record becomes the (prompt's) text; None is the task's default.
        text_pair: two columns that are classified together, joined as the model's tokenizer joins a pair.
        completion_template: how a record becomes the completion; causal-lm only.
        quantize: `auto` searches under `max_error`, `int8` is plain dynamic int8, `none` keeps fp32.
        max_error: largest mean relative error of the rows at the cut; None is the default that `error_limit` gives.
        target: processors to choose schemes for.
        embedding: how the token embedding is kept.
        calibration: text to measure on; None is the prose that comes with the program.
        max_tokens: longest sequence.
        wire: encoding of the rows.
        out: the bundle's folder, or that of several bundles; None is `bundles/<name>-cut<k>`.
        sign: private key file to sign the bundle with.
        threads: processor threads to use; None leaves it to PyTorch, which reads OMP_NUM_THREADS.
    """

    split_layer: int | Annotated[tuple[int, ...], Meta(min_length=1, max_length=64)]
    model: str = DEFAULT_MODEL
    revision: str | None = None
    task: Task = Task.TEXT_CLASSIFICATION
    labels: tuple[str, ...] = ()
    labels_from: str | None = None
    template: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    text_pair: Annotated[tuple[ColumnName, ...], Meta(min_length=2, max_length=2)] | None = None
    completion_template: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    quantize: Quantize = Quantize.AUTO
    max_error: Annotated[float, Meta(gt=0, le=1)] | None = None
    target: Target = Target.ANY
    embedding: EmbeddingBits = EmbeddingBits.INT8
    calibration: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS_PER_SAMPLE)] = 256
    wire: WireCodec = WireCodec.INT8
    out: str | None = None
    sign: str | None = None
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None

    @property
    def cuts(self) -> tuple[int, ...]:
        """The split layers, each once, in ascending order."""
        return (self.split_layer,) if isinstance(self.split_layer, int) else tuple(sorted(set(self.split_layer)))

    @property
    def error_limit(self) -> float:
        """`max_error`, or else what a bundle of this kind can keep to."""
        if self.max_error is not None:
            return self.max_error
        if self.embedding is EmbeddingBits.INT4:
            return DEFAULT_ERROR_INT4_BOTH if self.wire is WireCodec.INT4 else DEFAULT_ERROR_INT4_EMBEDDING
        return DEFAULT_ERROR_INT4_ROWS if self.wire is WireCodec.INT4 else DEFAULT_ERROR
