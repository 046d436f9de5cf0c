"""Fetching a model from the Hugging Face hub, pinned to a commit. The one door to `huggingface_hub`."""

from __future__ import annotations

import errno
import io
import re
from pathlib import Path
from typing import Any, Final

from huggingface_hub import errors, snapshot_download
from tqdm.std import tqdm  # type: ignore[import-untyped]  # it has no types

from sf_contract.errors import ModelError
from sf_model.progress import EVERY_S, Say

_FILES: Final = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "*.json",
    "*.model",
    "*.txt",
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_MB: Final = 1_000_000

_REASONS: Final[tuple[tuple[type[Exception], str, str], ...]] = (
    (
        errors.HFValidationError,
        "no model {source!r}: it is no folder or .gguf file here, and no hub id either",
        "check the path, or give a hub id such as openai-community/gpt2",
    ),
    (
        errors.GatedRepoError,
        "{source} is gated: the hub gives it only to people its authors have let in",
        "ask for access on the model's page of the hub, then log in with `hf auth login` or set HF_TOKEN",
    ),
    (
        errors.RevisionNotFoundError,
        "{source} has no revision {revision!r}",
        "give --revision a branch, tag or commit that exists",
    ),
    (
        errors.RepositoryNotFoundError,
        "no model {source!r}: not a folder, not a .gguf file, and the hub has none of this name, or a private one",
        "check the spelling; for a private model log in with `hf auth login` or set HF_TOKEN",
    ),
    (
        errors.IncompleteSnapshotError,
        "{source} is in the hub's cache in part only, and the hub cannot be reached for the rest",
        "start again with a network (and without HF_HUB_OFFLINE), or give a local folder",
    ),
    (
        errors.LocalEntryNotFoundError,
        "no model {source!r}: not a folder, not a .gguf file, not in the hub's cache at revision {revision!r}, and the hub "
        "cannot be reached ({reason})",
        "check the spelling and the network (and HF_HUB_OFFLINE), or give a local folder",
    ),
)
"""Kinds the hub client raises, the narrower ones first; what each means, and its cure."""


def download(source: str, revision: str | None, *, say: Say) -> Path:
    """The folder in the hub's cache that holds a model; its name is the commit, whatever `revision` was given.

    Without a network the cached copy is used.

    Raises:
        ModelError: the hub does not give the model, with a cure for each reason.
    """
    say(f"fetching {source} from the hub (kept in the hub's cache)")
    try:
        folder = Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(_FILES),
                ignore_patterns=["*/*"],
                tqdm_class=_told_through(say),
            )
        )
    except Exception as problem:  # the hub client raises its own kinds, its transport's and OSError
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _explained(source, revision, problem) from problem
    if not _COMMIT.fullmatch(folder.name):
        raise ModelError(
            f"the hub's cache keeps {source} in {folder}, which is not named by a commit",
            cure="update huggingface_hub to the tested version, or give a local folder",
        )
    return folder


def _explained(source: str, revision: str | None, problem: Exception) -> ModelError:
    for kind, what, cure in _REASONS:
        if isinstance(problem, kind):
            found = what.format(source=source, revision=revision or "main", reason=_first_line(problem))
            return ModelError(found, cure=cure)
    return ModelError(
        f"the hub does not give {source!r}: {_first_line(problem)}",
        cure="check the network, wait a little and start again, or give a local folder",
    )


def _first_line(problem: Exception) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__


def _told_through(say: Say) -> type[tqdm]:
    """The progress bar the hub client asks for, which says lines instead of drawing."""

    class Told(tqdm):  # type: ignore[misc]  # see above
        monitor_interval = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            options.update(file=io.StringIO(), mininterval=EVERY_S, leave=False, disable=False)
            super().__init__(*args, **options)

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            if self.unit == "B" and self.n and msg is None:
                of_all = f" of {self.total // _MB:,}" if self.total else ""
                say(f"fetching: {int(self.n) // _MB:,}{of_all} MB")
            return True

    return Told
