"""The bundle manifest: what a bundle is, in one canonical JSON document.

Canonical means: UTF-8, keys sorted, no white space, numbers as msgspec writes them, no trailing newline. The bundle id is
the SHA-256 of those bytes, so two bundles with the same id are the same bundle.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sf_contract import limits
from sf_contract.codec import WireCodec
from sf_contract.errors import BundleError
from sf_contract.hashes import sha256
from sf_contract.int4 import parameter_bytes

FORMAT_VERSION: Final = 1

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")]
"""A plain name: no separators, no leading dot, so it can never lead out of the bundle's folder."""
TokenId = Annotated[int, Meta(ge=0, lt=limits.MAX_VOCABULARY)]
_ON_ONE_LINE: Final = r"^[^\x00-\x1f\x7f-\x9f]*\Z"
"""No control characters: these strings are printed on terminals."""
Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(max_length=256, pattern=_ON_ONE_LINE)]
Label = Annotated[str, Meta(min_length=1, max_length=256, pattern=_ON_ONE_LINE)]
ShortName = Annotated[str, Meta(max_length=64, pattern=_ON_ONE_LINE)]
Fraction = Annotated[float, Meta(ge=0, le=1e6)]


class Task(enum.StrEnum):
    """What the whole model is fine-tuned for."""

    TEXT_CLASSIFICATION = "text-classification"
    CAUSAL_LM = "causal-lm"


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the manifest's parts."""


class BaseModel(Part, frozen=True):
    """The untouched checkpoint.

    `name` is the hub id, or the folder's or file's name; `revision` the hub commit, None for local files;
    `weights_sha256` covers every weight file, in name order; `model_type` is Transformers' architecture name.
    """

    name: Name
    revision: ShortName | None
    model_type: ShortName
    config_sha256: Sha256
    weights_sha256: Sha256


class Geometry(Part, frozen=True):
    """Sizes both ends rely on."""

    split_layer: Annotated[int, Meta(ge=1, le=10_000)]
    layers: Annotated[int, Meta(ge=2, le=10_000)]
    hidden: Annotated[int, Meta(ge=1, le=limits.MAX_HIDDEN)]
    vocabulary: Annotated[int, Meta(ge=1, le=limits.MAX_VOCABULARY)]
    max_tokens: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS_PER_SAMPLE)]


class Template(Part, frozen=True):
    """How a record becomes text: `{column}` is replaced by the record's value. `completion` is for causal-lm only."""

    prompt: Text = "{text}"
    completion: Text | None = None


class TaskSpec(Part, frozen=True):
    """Task, template and the names of the classes in index order (empty for causal-lm).

    `end_token_id` closes a completion; None when the tokenizer has none.
    """

    task: Task
    template: Template
    labels: Annotated[tuple[Label, ...], Meta(max_length=limits.MAX_LABELS)]
    end_token_id: TokenId | None = None


class ProjectionChoice(Part, frozen=True):
    """Quantization of one kind of weight.

    What the search knew when it chose, None where nothing was searched: `added_error` is the error at the cut that this
    choice causes alone, `relative_time` its estimated time over that of the same products in fp32.
    """

    weights: Name
    scheme: ShortName
    added_error: Fraction | None = None
    relative_time: Fraction | None = None


class MeasuredError(Part, frozen=True):
    """Error of the rows at the cut relative to fp32 PyTorch, after the wire codec, and what it does to the loss.

    `mean`, `p99` and `worst` are over tokens of the calibration text; `loss_fp32` and `loss_quantized` are the whole
    model's next-token losses in nats, `accuracy_fp32` and `accuracy_quantized` the share of next tokens it finds most
    likely (all None for models without a language-model head).
    """

    tokens: Annotated[int, Meta(ge=1)]
    text: Name
    mean: Fraction
    p99: Fraction
    worst: Fraction
    loss_fp32: float | None = None
    loss_quantized: float | None = None
    accuracy_fp32: Fraction | None = None
    accuracy_quantized: Fraction | None = None


class Quantization(Part, frozen=True):
    """Scheme asked for, processors it was chosen for, what each kind of weight got, and the measured error."""

    requested: ShortName
    choices: Annotated[tuple[ProjectionChoice, ...], Meta(max_length=10_000)]
    error: MeasuredError
    target: ShortName = "any"


class SelfTest(Part, frozen=True):
    """Test vectors: token ids here, fp32 PyTorch rows `[sum of lengths, hidden]` little-endian in `rows_file`.

    A device passes when the mean relative error of its decoded rows is at most `max_mean_error`.
    """

    token_ids: Annotated[
        tuple[Annotated[tuple[TokenId, ...], Meta(min_length=1)], ...], Meta(min_length=1, max_length=64)
    ]
    rows_file: FileName
    max_mean_error: Fraction


class BundleFile(Part, frozen=True):
    """One file of the folder."""

    name: FileName
    nbytes: Annotated[int, Meta(ge=0, le=limits.MAX_BUNDLE_BYTES)]
    sha256: Sha256


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a device and the server need to know about a bundle.

    The graph's inputs are int64 `input_ids` and `attention_mask` `[batch, tokens]` and `row_index` `[rows]` (positions of
    the real tokens in the flattened batch); its outputs are `rows` `[rows, columns]` in the wire codec and, for int8 and int4,
    `scales` `[rows, groups]`. `wire_file` holds the parameters of the wire codec int4; None for other codecs.
    """

    format_version: int
    base_model: BaseModel
    geometry: Geometry
    task: TaskSpec
    wire_codec: WireCodec
    quantization: Quantization
    graph_file: FileName
    tokenizer_file: FileName
    self_test: SelfTest
    files: Annotated[tuple[BundleFile, ...], Meta(min_length=1, max_length=limits.MAX_BUNDLE_FILES)]
    tools: Annotated[dict[ShortName, ShortName], Meta(max_length=64)]
    wire_file: FileName | None = None

    @property
    def bundle_id(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return sha256(encode_manifest(self)).hexdigest()


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical bytes."""
    return _encoder.encode(manifest)


def decode_manifest(raw: bytes, *, where: str) -> Manifest:
    """A manifest that is valid in itself; files are not looked at.

    Raises:
        BundleError: anything else than canonical bytes of a consistent manifest of this format version.
    """
    if len(raw) > limits.MAX_MANIFEST_BYTES:
        raise _damaged(f"{where} has {len(raw)} bytes, more than the {limits.MAX_MANIFEST_BYTES} a manifest may have")
    try:
        manifest = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise _damaged(f"{where} is not a manifest of format version {FORMAT_VERSION}: {problem}") from problem
    if manifest.format_version != FORMAT_VERSION:
        raise BundleError(
            f"{where} has format version {manifest.format_version}; this program reads version {FORMAT_VERSION}",
            cure="use the SplitFrozen version that made the bundle, or export it again",
        )
    if encode_manifest(manifest) != raw:
        raise _damaged(f"{where} is not in canonical form, so it was edited by hand or by another program")
    _check_consistency(manifest, where)
    return manifest


def _check_consistency(manifest: Manifest, where: str) -> None:
    problems = {**_file_problems(manifest), **_vector_problems(manifest), **_task_problems(manifest)}
    for problem, present in problems.items():
        if present:
            raise _damaged(f"{where} {problem}")


def _file_problems(manifest: Manifest) -> dict[str, bool]:
    sizes = {file.name: file.nbytes for file in manifest.files}
    roles = [manifest.graph_file, manifest.tokenizer_file, manifest.self_test.rows_file]
    if manifest.wire_file is not None:
        roles.append(manifest.wire_file)
    return {
        "lists a file twice": len({name.lower() for name in sizes}) != len(manifest.files),
        "names a file it does not list": not set(roles) <= set(sizes),
        "gives one file two roles": len(set(roles)) != len(roles),
        "lists a file that describes the bundle itself": any(name.lower().startswith("manifest.") for name in sizes),
        "needs parameters for its wire codec, or has some for one without": (manifest.wire_file is not None)
        != (manifest.wire_codec is WireCodec.INT4),
        f"has a graph of more than {limits.MAX_GRAPH_BYTES} bytes": sizes.get(manifest.graph_file, 0)
        > limits.MAX_GRAPH_BYTES,
        f"has a tokenizer of more than {limits.MAX_TOKENIZER_BYTES} bytes": sizes.get(manifest.tokenizer_file, 0)
        > limits.MAX_TOKENIZER_BYTES,
        f"lists more than {limits.MAX_BUNDLE_BYTES} bytes": sum(sizes.values()) > limits.MAX_BUNDLE_BYTES,
    }


def _vector_problems(manifest: Manifest) -> dict[str, bool]:
    geometry, vectors = manifest.geometry, manifest.self_test
    tokens = sum(map(len, vectors.token_ids))
    sizes = {file.name: file.nbytes for file in manifest.files}
    nbytes = sizes.get(vectors.rows_file, 0)
    return {
        "has codec parameters of another size than its rows need": manifest.wire_file is not None
        and sizes.get(manifest.wire_file, 0) != parameter_bytes(geometry.hidden),
        "has a split layer outside the model": geometry.split_layer >= geometry.layers,
        "has test vectors that are too long": tokens > limits.MAX_SELF_TEST_TOKENS
        or max(map(len, vectors.token_ids)) > geometry.max_tokens,
        "has a test vector with a token outside the vocabulary": max(map(max, vectors.token_ids))
        >= geometry.vocabulary,
        f"has test vectors of {nbytes} bytes; {tokens} tokens need {tokens * geometry.hidden * 4}": nbytes
        != tokens * geometry.hidden * 4,
    }


def _task_problems(manifest: Manifest) -> dict[str, bool]:
    task = manifest.task
    classification = task.task is Task.TEXT_CLASSIFICATION
    return {
        "needs at least two labels": classification and len(task.labels) < 2,
        "has labels but no classes": not classification and bool(task.labels),
        "names a label twice": len(set(task.labels)) != len(task.labels),
        "has an end token outside the vocabulary": (task.end_token_id or 0) >= manifest.geometry.vocabulary,
    }


def _damaged(what: str) -> BundleError:
    return BundleError(what, cure="export the bundle again and copy the whole folder")
