"""A `.gguf` file as a folder of safetensors, converted once and kept in the cache."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import torch
from filelock import FileLock, Timeout
from gguf.gguf_reader import ReaderTensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, modeling_gguf_pytorch_utils

from sf_contract.errors import ModelError
from sf_model.progress import ByteProgress, Say, told_while
from sf_model.weight_files import sha256_of

_RECORD_FILE: Final = "conversion.json"


class _File(msgspec.Struct, frozen=True):
    """One file of a finished conversion."""

    nbytes: int
    sha256: str


class _Record(msgspec.Struct, frozen=True):
    """Written last: what a whole conversion consists of."""

    files: dict[str, _File]


def converted_gguf(path: Path, digest: str, *, cache: Path, say: Say) -> Path:
    """The folder with the safetensors of a checked GGUF file; a second process waits for the first to make it.

    Args:
        path: the file.
        digest: SHA-256 of its content, which names the folder.
        cache: where conversions are kept.

    Raises:
        ModelError: the file cannot be converted; nothing is left of the try.
    """
    folder = cache / f"gguf-{digest[:32]}"
    cache.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(FileLock(f"{folder}.lock"), path, say):
        if folder.is_dir() and not _is_whole(folder, say):
            say(f"the converted model in {folder} is damaged or of another version, and is made again")
        elif folder.is_dir():
            return folder
        _remove_leftovers(folder)
        say(f"converting {path.name} to safetensors once (kept in {folder})")
        _convert(path, folder, say)
    return folder


@contextmanager
def _one_at_a_time(lock: FileLock, path: Path, say: Say) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that converts {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_whole(folder: Path, say: Say) -> bool:
    try:
        record = msgspec.json.decode((folder / _RECORD_FILE).read_bytes(), type=_Record)
        sizes = {name: (folder / name).stat().st_size for name in record.files}
    except (OSError, msgspec.DecodeError):
        return False
    if sizes != {name: file.nbytes for name, file in record.files.items()}:
        return False
    progress = ByteProgress(say, "checking the converted model", total_bytes=sum(sizes.values()))
    return all(sha256_of(folder / name, progress) == file.sha256 for name, file in record.files.items())


def _remove_leftovers(folder: Path) -> None:
    """What killed conversions left, and a damaged folder; the caller holds the lock."""
    for left in (folder, *folder.parent.glob(f".{folder.name}-*")):
        if left.exists():
            shutil.rmtree(left)


def _convert(path: Path, folder: Path, say: Say) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _tensors_told(say):
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
            )
        with told_while(say, f"writing {path.name} as safetensors"):
            _without_quantizer(model).save_pretrained(scratch)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
            tokenizer.save_pretrained(scratch)
        _write_record(scratch, say)
        scratch.replace(folder)
    except Exception as problem:  # gguf, transformers and torch raise many kinds for what they do not know
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ModelError(
            f"{path} cannot be converted: {type(problem).__name__}: {' '.join(str(problem).split())}",
            cure="give a .gguf file of an architecture Transformers can read from GGUF, or a folder of safetensors",
        ) from problem
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _without_quantizer(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not claim to be quantized: Transformers refuses to save one that does."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _write_record(folder: Path, say: Say) -> None:
    paths = sorted(file for file in folder.iterdir() if file.is_file())
    progress = ByteProgress(say, "hashing the converted model", total_bytes=sum(path.stat().st_size for path in paths))
    files = {path.name: _File(nbytes=path.stat().st_size, sha256=sha256_of(path, progress)) for path in paths}
    with (folder / _RECORD_FILE).open("wb") as stream:
        stream.write(msgspec.json.encode(_Record(files=files)))
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _tensors_told(say: Say) -> Iterator[None]:
    """Within the context, Transformers' progress bar over the tensors of a GGUF file says lines instead."""
    names = vars(modeling_gguf_pytorch_utils)
    original = names["tqdm"]

    def told(tensors: Sequence[ReaderTensor], **_: object) -> Iterator[ReaderTensor]:
        progress = ByteProgress(say, "converting", total_bytes=sum(tensor.n_bytes for tensor in tensors))
        for tensor in tensors:
            yield tensor
            progress.add(tensor.n_bytes)

    names["tqdm"] = told
    try:
        yield
    finally:
        names["tqdm"] = original
