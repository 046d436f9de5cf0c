"""The files that hold a model's weights: which they are, and whether they are whole, before anything is loaded.

Only safetensors is read. Pickled weights are refused, since loading them can run code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from safetensors import SafetensorError, safe_open

from sf_contract import limits
from sf_contract.errors import ModelError
from sf_model.progress import ByteProgress, Say

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
FLOATING: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""Names, in a safetensors header, of the dtypes that weights may have."""

_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_INDEX_BYTES: Final = 64 * limits.MIB
_MAX_SHARDS: Final = 10_000
_CHUNK_BYTES: Final = 4 * limits.MIB


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its file describes it."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weights of a folder.

    Attributes:
        files: the safetensors files, in the order of their names.
        tensors: every tensor by name.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files)

    def digest(self, say: Say) -> str:
        """SHA-256 over names and SHA-256 of the files."""
        progress = ByteProgress(say, "hashing the weights", total_bytes=self.nbytes)
        joint = hashlib.sha256()
        for file in self.files:
            joint.update(f"{file.name}:{sha256_of(file, progress)}\n".encode())
        return joint.hexdigest()


class _Index(msgspec.Struct, frozen=True):
    """`model.safetensors.index.json`: which shard holds which tensor."""

    weight_map: Annotated[dict[str, str], Meta(min_length=1)]


def find_weights(folder: Path) -> WeightFiles:
    """The weights of a model folder, whose files were found whole: headers, sizes and the index agree.

    Raises:
        ModelError: there are none, they are pickled, or a file is damaged or missing.
    """
    if (folder / SINGLE_FILE).exists():
        path = folder / SINGLE_FILE
        return _checked(WeightFiles(files=(path,), tensors=dict(_tensors_of(path))))
    if (folder / INDEX_FILE).exists():
        return _checked(_sharded(folder))
    raise _no_weights(folder)


def sha256_of(path: Path, progress: ByteProgress) -> str:
    """SHA-256 of a file.

    Raises:
        ModelError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                progress.add(len(chunk))
    except OSError as problem:
        raise ModelError(f"{path} cannot be read: {problem.strerror}", cure="check the file and the disk") from problem
    return digest.hexdigest()


def _sharded(folder: Path) -> WeightFiles:
    weight_map = _read_index(folder / INDEX_FILE).weight_map
    names = sorted(set(weight_map.values()))
    for name in names:
        if not _is_plain_name(name):
            raise ModelError(
                f"{folder / INDEX_FILE} names the shard {name!r}; expected the name of a .safetensors file in the folder",
                cure="do not use this model: an index must not lead out of its folder",
            )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"{folder} lacks {len(missing)} of the {len(names)} shards its index names: {listed}",
            cure="fetch the missing files",
        )
    tensors = {name: info for shard in names for name, info in _tensors_of(folder / shard)}
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file != shard:
            raise ModelError(
                f"{folder / shard} does not hold the tensor {name}, which the index says it does",
                cure="fetch the shards and the index again; they belong to different versions",
            )
    return WeightFiles(files=tuple(folder / name for name in names), tensors=tensors)


def _read_index(path: Path) -> _Index:
    cure = "fetch the index again"
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise ModelError(f"{path} has {path.stat().st_size:,} bytes, more than an index can have", cure=cure)
    try:
        index = msgspec.json.decode(path.read_bytes(), type=_Index)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise ModelError(f"{path} is not an index of shards: {problem}", cure=cure) from problem
    if len(set(index.weight_map.values())) > _MAX_SHARDS:
        raise ModelError(f"{path} names more than {_MAX_SHARDS:,} shards", cure=cure)
    return index


def _is_plain_name(name: str) -> bool:
    plain = name == PurePosixPath(name).name == PureWindowsPath(name).name and "\0" not in name
    return plain and name.endswith(".safetensors")


def _tensors_of(path: Path) -> Iterator[tuple[str, TensorInfo]]:
    """Names and shapes; the library maps the file and checks that header and size agree, and reads no weights."""
    if not path.is_file():
        raise ModelError(f"{path} is not a file", cure="give a folder with the model's own files")
    try:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_slice(name)
                yield name, TensorInfo(file=path.name, dtype=tensor.get_dtype(), shape=tuple(tensor.get_shape()))
    except (SafetensorError, OSError) as problem:
        size = path.stat().st_size if path.exists() else 0
        raise ModelError(
            f"{path} ({size:,} bytes) is not a whole safetensors file: {problem}",
            cure="fetch the file again; it is cut off or damaged",
        ) from problem


def _checked(weights: WeightFiles) -> WeightFiles:
    folder = weights.files[0].parent
    if not weights.tensors:
        raise ModelError(f"{folder} holds safetensors files without a tensor", cure="fetch the weights again")
    for name, info in weights.tensors.items():
        if name.endswith(".weight") and info.dtype not in FLOATING:
            raise ModelError(
                f"{folder / info.file}: {name} has dtype {info.dtype}; expected one of {', '.join(sorted(FLOATING))}",
                cure="give the model's own weights, not quantized ones",
            )
    return weights


def _no_weights(folder: Path) -> ModelError:
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickled:
        return ModelError(
            f"{folder} holds no {SINGLE_FILE}, but pickled weights ({pickled[0]}), which can run code when they are opened",
            cure="convert them to safetensors where you trust them: "
            "AutoModel.from_pretrained(...).save_pretrained(...) writes them",
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    found = f", only {', '.join(others[:3])}" if others else ""
    return ModelError(
        f"{folder} holds no *.safetensors weights that Transformers reads: neither {SINGLE_FILE} nor {INDEX_FILE}{found}",
        cure="save the model as safetensors (save_pretrained does); pickled weights are never read",
    )
