"""Opening a base model: a hub id, a local folder of safetensors, or a `.gguf` file.

Nothing of it is trusted before it was checked: files are whole, the architecture is known, every weight that the model
needs is there and is a number. Program code that a model brings is never run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel

from sf_contract.bundle import sha256_of_file
from sf_contract.errors import MismatchError, ModelError
from sf_contract.manifest import BaseModel, Task
from sf_model.config_file import CONFIG_FILE, read_config
from sf_model.config_view import model_class, view_config
from sf_model.gguf_conversion import converted_gguf
from sf_model.gguf_header import check_gguf
from sf_model.hub import download
from sf_model.loaded import check_complete, check_finite, shape_mismatch
from sf_model.progress import ByteProgress, Say, silent, told_while
from sf_model.weight_files import FLOATING, WeightFiles, find_weights, sha256_of

_OWN_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base model on this machine.

    Attributes:
        identity: name, revision and digests, as they go into a bundle's manifest.
        folder: what `from_pretrained` opens.
        config: the model's config.
        weights: its files, found whole.
    """

    identity: BaseModel
    folder: Path
    config: PretrainedConfig
    weights: WeightFiles

    @property
    def own_dtype(self) -> torch.dtype:
        """The smallest dtype that holds every weight exactly: that of the files, or fp32 where they differ."""
        floating = {info.dtype for info in self.weights.tensors.values() if info.dtype in FLOATING}
        return _OWN_DTYPES.get(next(iter(floating)), torch.float32) if len(floating) == 1 else torch.float32


def open_checkpoint(source: str, *, revision: str | None = None, say: Say = silent) -> Checkpoint:
    """Find a base model and identify it by content.

    Args:
        source: hub id, folder, or `.gguf` file.
        revision: hub branch, tag or commit; None is the hub's default branch.
        say: told about work that takes long.

    Raises:
        ModelError: it cannot be found or read.
    """
    _keep_transformers_quiet()
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return _open_gguf(path, say)
    if path.is_dir():
        return _open_folder(path, name=path.resolve().name, revision=None, say=say)
    if path.exists():
        raise ModelError(
            f"{path} is a file, but not a .gguf file", cure="give a hub id, a model folder or a .gguf file"
        )
    folder = download(source, revision, say=say)
    return _open_folder(folder, name=source, revision=folder.name, say=say)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, frozen.

    Attributes:
        model: the ordinary Transformers model.
        new_modules: dotted names of modules whose weights the checkpoint lacks and that were drawn at random,
            such as a classification head. Whoever trains must train and publish them.
    """

    model: PreTrainedModel
    new_modules: tuple[str, ...]


def load_model(
    checkpoint: Checkpoint,
    *,
    task: Task | None,
    dtype: torch.dtype,
    labels: Sequence[str] = (),
    seed: int = 0,
    say: Say = silent,
) -> LoadedModel:
    """The model for a task; a head the checkpoint lacks is drawn from `seed`, for text classification only.

    Weights whose dtype is kept are mapped from their files and not copied.

    Args:
        task: selects the ordinary Transformers class; None gives the bare base model.
        dtype: dtype of all weights.
        labels: class names for `Task.TEXT_CLASSIFICATION`.
        say: told about loading that takes long.

    Raises:
        ModelError: the folder does not hold a model that this task's class can load, a weight the model needs is missing
            or has another shape, or a weight is not finite.
    """
    _check_layers(checkpoint)
    with told_while(say, f"loading {checkpoint.identity.name}"):
        model, missing = _loaded(checkpoint, task=task, dtype=dtype, labels=labels, seed=seed)
        classifies = task is Task.TEXT_CLASSIFICATION
        check_complete(model, missing, name=checkpoint.identity.name, head_may_be_new=classifies)
        check_finite(model, name=checkpoint.identity.name)
    config = model.config.get_text_config()
    if classifies and config.pad_token_id is None:
        # Decoder classes refuse batches without one; padding is masked, so any id will do.
        config.pad_token_id = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
    model.train(False)
    model.requires_grad_(False)
    modules = {name.rpartition(".")[0] for name in missing}
    return LoadedModel(model=model, new_modules=tuple(sorted(modules)))


def check_same_base(checkpoint: Checkpoint, expected: BaseModel) -> None:
    """Refuse a base model other than the one a bundle was made from.

    Raises:
        MismatchError: weights or config differ.
    """
    found = checkpoint.identity
    if (found.weights_sha256, found.config_sha256) != (expected.weights_sha256, expected.config_sha256):
        raise MismatchError(
            f"the bundle was made from {expected.name} (weights {expected.weights_sha256[:12]}), "
            f"but {found.name} has weights {found.weights_sha256[:12]}",
            cure="give the same base model with --model, or export a bundle from this one",
        )


def tokenizer_json(checkpoint: Checkpoint) -> tuple[bytes, int | None]:
    """The tokenizer in the `tokenizers` library's JSON format, and the id that ends a text (None when it has none).

    Raises:
        ModelError: the model has no tokenizer, or none that library can express.
    """
    name = checkpoint.identity.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as problem:  # transformers raises many kinds when files are missing or damaged
        raise ModelError(
            f"{name} has no tokenizer that can be loaded: {_joined(problem)}",
            cure="add the model's own tokenizer.json to the model folder",
        ) from problem
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"the tokenizer of {name} exists in Python only, which devices cannot run",
            cure="add a tokenizer.json (a fast tokenizer) to the model folder",
        )
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str(pretty=False).encode(), tokenizer.eos_token_id


def _keep_transformers_quiet() -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _open_folder(folder: Path, *, name: str, revision: str | None, say: Say) -> Checkpoint:
    config = read_config(folder)
    weights = find_weights(folder)
    identity = BaseModel(
        name=name,
        revision=revision,
        model_type=config.model_type,
        config_sha256=sha256_of_file(folder / CONFIG_FILE),
        weights_sha256=weights.digest(say),
    )
    return Checkpoint(identity=identity, folder=folder, config=config, weights=weights)


def _open_gguf(path: Path, say: Say) -> Checkpoint:
    check_gguf(path)
    digest = sha256_of(path, ByteProgress(say, f"hashing {path.name}", total_bytes=path.stat().st_size))
    folder = converted_gguf(path, digest, cache=_cache_root(), say=say)
    config = read_config(folder)
    identity = BaseModel(
        name=path.name,
        revision=None,
        model_type=config.model_type,
        config_sha256=sha256_of_file(folder / CONFIG_FILE),
        weights_sha256=digest,
    )
    return Checkpoint(identity=identity, folder=folder, config=config, weights=find_weights(folder))


def _check_layers(checkpoint: Checkpoint) -> None:
    """Before a model is built as large as the config says."""
    layers, tensors = view_config(checkpoint.config).layers, len(checkpoint.weights.tensors)
    if layers > tensors:
        raise ModelError(
            f"the config of {checkpoint.identity.name} names {layers:,} layers, and its weights are {tensors:,} tensors",
            cure="fetch the model again, weights and config.json of the same version",
        )


def _loaded(
    checkpoint: Checkpoint, *, task: Task | None, dtype: torch.dtype, labels: Sequence[str], seed: int
) -> tuple[PreTrainedModel, Collection[str]]:
    """The model and the names of the weights that were drawn at random."""
    options: dict[str, Any] = {}
    if task is Task.TEXT_CLASSIFICATION:
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {label: index for index, label in enumerate(labels)}
    kind: Any = model_class(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            loaded: tuple[PreTrainedModel, Mapping[str, Collection[str]]] = kind.from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
        except Exception as problem:  # transformers, safetensors and torch raise many kinds for a damaged folder
            reason = shape_mismatch(kind, checkpoint.config, checkpoint.weights) or _joined(problem)
            raise ModelError(
                f"{checkpoint.identity.name} cannot be loaded: {reason}",
                cure="check that the folder holds one model's config.json and *.safetensors weights",
            ) from problem
    return loaded[0], loaded[1]["missing_keys"]


def _joined(problem: Exception) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "splitfrozen"
