"""Files that rivals run: made once per model, cut and exporter, and kept in the work folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Final, Protocol

import msgspec

from sf_bench.rivals.gguf_layers import layer_count, write_layers
from sf_contract.bundle import Bundle, open_bundle, sha256_of_file
from sf_contract.errors import DataError, MismatchError, ModelError, UsageError
from sf_contract.manifest import Manifest, Task
from sf_contract.samples import UnusableRecord

Windows = tuple[tuple[int, ...], ...]
Say = Callable[[str], None]

PROSE: Final = "the prose that comes with sf-export"
_MAX_TEXT_BYTES: Final = 16 * 1024 * 1024
_EXPORT: Final = "import sys; from sf_export.main import main; sys.exit(main())"


class Tokenizer(Protocol):
    """What cutting a text into windows needs of a tokenizer."""

    def encode(self, text: str, *, special_tokens: bool, max_tokens: int | None) -> list[int]:
        """Token ids of a text."""


def check_same_front(bundles: Sequence[Bundle]) -> None:
    """Refuse bundles that are not the same front end.

    Raises:
        MismatchError: base models or cuts differ.
    """
    first = bundles[0]
    for other in bundles[1:]:
        if _front_of(first.manifest) != _front_of(other.manifest):
            raise MismatchError(
                f"{other.folder} has another base model or cut than {first.folder}",
                cure="compare bundles of one model and one --split-layer",
            )


def read_text(path: Path | None) -> str:
    """A UTF-8 text file, or the exporter's prose.

    Raises:
        DataError: the file cannot be read.
    """
    if path is None:
        return resources.files("sf_export").joinpath("prose.txt").read_text(encoding="utf-8")
    try:
        with path.open(encoding="utf-8-sig") as stream:
            return stream.read(_MAX_TEXT_BYTES)
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path} cannot be read as UTF-8 text: {problem}", cure="give --text a text file") from problem


def text_windows(text: str, tokenizer: Tokenizer, *, tokens: int, windows: int) -> Windows:
    """Stretches of `tokens` tokens, spread evenly over a text.

    Raises:
        DataError: the text is too short.
    """
    try:
        ids = tokenizer.encode(text, special_tokens=False, max_tokens=None)
    except UnusableRecord as problem:
        raise DataError(f"the text cannot be used: {problem}", cure="give another --text") from problem
    available = len(ids) // tokens
    if available < windows:
        raise DataError(
            f"the text gives {available} windows of {tokens} tokens; {windows} are wanted",
            cure="give a longer --text, fewer --windows or fewer --tokens",
        )
    step = available // windows
    return tuple(tuple(ids[index * step * tokens :][:tokens]) for index in range(windows))


class Front(msgspec.Struct, frozen=True):
    """The checkpoint and cut that everybody runs.

    Attributes:
        manifest: of one of the bundles.
        model, revision: the checkpoint, as `sf-export` takes it.
        work: folder for files that are made once.
    """

    manifest: Manifest
    model: str
    revision: str
    work: Path

    @property
    def split_layer(self) -> int:
        """The cut."""
        return self.manifest.geometry.split_layer


def model_of(manifest: Manifest, given: str | None) -> str:
    """The model to open.

    Raises:
        UsageError: it was made from a local model, and that was not given.
    """
    if given is not None:
        return given
    if manifest.base_model.revision is None:
        raise UsageError(
            f"the bundle was made from the local model {manifest.base_model.name}",
            cure="give its folder or .gguf file with --model",
        )
    return manifest.base_model.name


def fp32_bundle(front: Front, *, say: Say) -> Bundle:
    """The same front end, exported with nothing quantized and fp32 rows; made again when the exporter changes.

    Raises:
        ModelError: the export failed.
        MismatchError: the model is not the one the bundles were made from.
    """
    folder = front.work / f"fp32-{_front_key(front)}"
    if not folder.is_dir():
        say(f"sf-bench: exporting the fp32 graph (kept in {folder})")
        front.work.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", _EXPORT, *_export_options(front, folder)], check=False, stdout=subprocess.DEVNULL
        )
        if done.returncode != 0:
            raise ModelError(
                f"the fp32 graph of {front.model} cannot be exported", cure="see the message of sf-export above"
            )
    bundle = open_bundle(folder)
    if _front_of(bundle.manifest) != _front_of(front.manifest):
        raise MismatchError(
            f"{front.model} is not the model that the bundles were made from ({front.manifest.base_model.name})",
            cure="give the same model with --model",
        )
    return bundle


def _export_options(front: Front, folder: Path) -> list[str]:
    manifest = front.manifest
    options = ["--split-layer", str(front.split_layer), "--model", front.model, "--quantize", "none", "--wire", "fp32"]
    options += ["--max-tokens", str(manifest.geometry.max_tokens), "--out", str(folder)]
    options += ["--revision", front.revision] if front.revision else []
    # The front end does not depend on the task, but the class that the model is opened with does.
    return options + (["--task", "causal-lm"] if manifest.task.task is Task.CAUSAL_LM else ["--labels", "a,b"])


class GgufFiles(msgspec.Struct, frozen=True):
    """Files whose difference in time is the layers below the cut; `below_cut` has just these layers."""

    shallow: Path
    deep: Path
    below_cut: Path


def gguf_files(front: Front, source: Path, *, quantization: str, say: Say) -> GgufFiles:
    """Truncated copies of a GGUF model in one quantization.

    Raises:
        ModelError: the file is no GGUF model.
        UsageError: the cut leaves no layer to subtract.
    """
    total, cut = layer_count(source), front.split_layer
    depth = min(cut, total - cut)
    if depth < 1:
        raise UsageError(f"cut {cut} of {total} layers cannot be timed as a difference", cure="use a lower cut")
    key = sha256_of_file(source)[:12]
    folder = front.work / f"gguf-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[int, Path] = {}
    for layers in (depth, depth + cut, cut):
        path = folder / f"{quantization}-{layers}.gguf"
        if not path.exists():
            say(f"sf-bench: writing {path}")
            scratch = path.with_suffix(".part")
            write_layers(source, scratch, layers=layers, quantization=quantization)
            scratch.replace(path)
        made[layers] = path
    return GgufFiles(shallow=made[depth], deep=made[depth + cut], below_cut=made[cut])


def _front_of(manifest: Manifest) -> tuple[str, str, int]:
    return manifest.base_model.weights_sha256, manifest.base_model.config_sha256, manifest.geometry.split_layer


def _front_key(front: Front) -> str:
    """Changes with the model, the cut, the longest sequence and the code of the exporter."""
    digest = hashlib.sha256(repr((*_front_of(front.manifest), front.manifest.geometry.max_tokens)).encode())
    for package in ("sf_export", "sf_model"):
        for file in sorted(Path(str(resources.files(package))).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
