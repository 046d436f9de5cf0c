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


class Quantize(enum.StrEnum):
    """What `--quantize` asks for."""

    AUTO = "auto"
    INT8 = "int8"
    NONE = "none"


class ExportSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of an export.

    Attributes:
        split_layer: number of leading layers that run on the device.
        model: hub id, model folder or `.gguf` file.
        revision: hub branch, tag or commit.
        task: what the whole model is fine-tuned for.
        labels: class names, in index order.
        labels_from: a file that holds them: one per line, or a data file with a label column.
        template: how a record becomes the (prompt's) text; None is the task's default.
        completion_template: how a record becomes the completion; causal-lm only.
        quantize: `auto` searches under `max_error`, `int8` is plain dynamic int8, `none` keeps fp32.
        max_error: largest mean relative error of the rows at the cut.
        calibration: text to measure on; None is the prose that comes with the program.
        max_tokens: longest sequence.
        wire: encoding of the rows.
        out: the bundle's folder; None is `bundles/<name>-cut<k>`.
        threads: processor threads to use; None leaves it to PyTorch, which reads OMP_NUM_THREADS.
    """

    split_layer: int
    model: str = DEFAULT_MODEL
    revision: str | None = None
    task: Task = Task.TEXT_CLASSIFICATION
    labels: tuple[str, ...] = ()
    labels_from: str | None = None
    template: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    completion_template: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    quantize: Quantize = Quantize.AUTO
    max_error: Annotated[float, Meta(gt=0, le=1)] = 0.05
    calibration: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS_PER_SAMPLE)] = 256
    wire: WireCodec = WireCodec.INT8
    out: str | None = None
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
