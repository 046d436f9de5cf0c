"""Opening a base model: a hub id, a local folder of safetensors, or a `.gguf` file.

Together with `config_view` the one door to `transformers` for loading. Only safetensors and GGUF are read: pickled
weights are refused, since loading them can run code.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from sf_contract.bundle import sha256_of_file
from sf_contract.errors import MismatchError, ModelError
from sf_contract.manifest import BaseModel, Task
from sf_model.config_view import model_class

DEFAULT_MODEL: Final = "openai-community/gpt2"
_GGUF_MAGIC: Final = b"GGUF"
_HUB_FILES: Final = ("*.safetensors", "*.json", "*.model", "*.txt")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A base model on this machine.

    Attributes:
        identity: name, revision and digests, as they go into a bundle's manifest.
        folder: what `from_pretrained` opens.
        config: the model's config.
    """

    identity: BaseModel
    folder: Path
    config: PretrainedConfig


def open_checkpoint(source: str, *, revision: str | None = None, say: Say = lambda _: None) -> Checkpoint:
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
        return _open_folder(path, name=path.resolve().name, revision=None)
    if path.exists():
        raise ModelError(
            f"{path} is a file, but not a .gguf file", cure="give a hub id, a model folder or a .gguf file"
        )
    folder = _download(source, revision, say)
    return _open_folder(folder, name=source, revision=folder.name)


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
) -> LoadedModel:
    """The model for a task; weights the checkpoint lacks are drawn from `seed`.

    Args:
        task: selects the ordinary Transformers class; None gives the bare base model.
        dtype: dtype of all weights.
        labels: class names for `Task.TEXT_CLASSIFICATION`.

    Raises:
        ModelError: the folder does not hold a model that this task's class can load.
    """
    options: dict[str, Any] = {}
    if task is Task.TEXT_CLASSIFICATION:
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {label: index for index, label in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            loaded: Any = model_class(task).from_pretrained(
                checkpoint.folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
        except Exception as problem:  # transformers, safetensors and torch raise many kinds for a damaged folder
            raise ModelError(
                f"{checkpoint.identity.name} cannot be loaded: {type(problem).__name__}: {problem}",
                cure="check that the folder holds a complete model with *.safetensors weights",
            ) from problem
    model: PreTrainedModel = loaded[0]
    config = model.config.get_text_config()
    if task is Task.TEXT_CLASSIFICATION and config.pad_token_id is None:
        # Decoder classes refuse batches without one; padding is masked, so any id will do.
        config.pad_token_id = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
    model.train(False)
    model.requires_grad_(False)
    modules = {name.rpartition(".")[0] for name in loaded[1]["missing_keys"]}
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
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    except Exception as problem:  # transformers raises many kinds when files are missing
        raise ModelError(
            f"{checkpoint.identity.name} has no tokenizer that can be loaded: {problem}",
            cure="add tokenizer.json to the model folder",
        ) from problem
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"the tokenizer of {checkpoint.identity.name} exists in Python only",
            cure="add a tokenizer.json (a fast tokenizer) to the model folder",
        )
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str(pretty=False).encode(), tokenizer.eos_token_id


def _keep_transformers_quiet() -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _open_folder(folder: Path, *, name: str, revision: str | None) -> Checkpoint:
    config_path = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as problem:  # OSError, ValueError, KeyError: missing, not JSON, unknown model_type
        raise ModelError(
            f"{folder} is not a model folder: {problem}", cure="give a folder with config.json and *.safetensors"
        ) from problem
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder} holds no *.safetensors weights", cure="save the model as safetensors")
    identity = BaseModel(
        name=name,
        revision=revision,
        model_type=config.model_type,
        config_sha256=sha256_of_file(config_path),
        weights_sha256=_joint_digest(weights),
    )
    return Checkpoint(identity=identity, folder=folder, config=config)


def _joint_digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def _download(source: str, revision: str | None, say: Say) -> Path:
    say(f"fetching {source} from the hub (kept in the hub's cache)")
    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=list(_HUB_FILES), ignore_patterns=["*/*"])
        )
    except Exception as problem:  # the hub client raises its own, httpx's and OSError for one cause: not available
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise ModelError(
            f"no model {source!r}: not a folder, not a .gguf file, and the hub does not give it ({reason})",
            cure="check the spelling and the network, or give a local folder",
        ) from problem


def _open_gguf(path: Path, say: Say) -> Checkpoint:
    _check_gguf(path)
    digest = sha256_of_file(path)
    folder = _cache_root() / f"gguf-{digest[:32]}"
    if not folder.is_dir():
        say(f"converting {path.name} to safetensors once (kept in {folder})")
        _convert_gguf(path, folder)
    opened = _open_folder(folder, name=path.name, revision=None)
    identity = BaseModel(
        name=path.name,
        revision=None,
        model_type=opened.identity.model_type,
        config_sha256=opened.identity.config_sha256,
        weights_sha256=digest,
    )
    return Checkpoint(identity=identity, folder=folder, config=opened.config)


def _check_gguf(path: Path) -> None:
    cure = "give a complete .gguf file (format version 2 or 3)"
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as problem:
        raise ModelError(f"{path} cannot be read: {problem.strerror}", cure="check the path") from problem
    if len(head) < 8 or head[:4] != _GGUF_MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it begins with {head[:4]!r}, expected {_GGUF_MAGIC!r}", cure=cure)
    (version,) = struct.unpack("<I", head[4:])
    if version not in (2, 3):
        raise ModelError(f"{path} has GGUF version {version}; known are 2 and 3", cure=cure)


def _convert_gguf(path: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        _without_quantizer(model).save_pretrained(scratch)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(scratch)
        scratch.replace(folder)
    except Exception as problem:  # gguf, transformers and torch raise many kinds for a damaged file
        raise ModelError(
            f"{path} cannot be converted: {type(problem).__name__}: {problem}",
            cure="give a complete .gguf file of an architecture Transformers can read from GGUF",
        ) from problem
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _without_quantizer(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not claim to be quantized: Transformers refuses to save one that does."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "splitfrozen"
