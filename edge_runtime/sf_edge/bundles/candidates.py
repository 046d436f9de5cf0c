"""Which bundle of a folder: the folder itself, or one of several quantizations of the same front end in its sub-folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sf_contract.bundle import MANIFEST_FILE, Bundle, check_id, open_bundle
from sf_contract.errors import BundleError, MismatchError, SplitFrozenError
from sf_contract.manifest import Manifest
from sf_contract.signing import Signer, TrustList, check_signature

MOST_CANDIDATES: Final = 32


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Whose bundles are accepted (None: unsigned ones too), and the one id that is (None: any)."""

    trust: TrustList | None = None
    wanted_id: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bundle that is whole and accepted, and who signed it."""

    bundle: Bundle
    signer: Signer | None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A bundle that cannot be used, and why."""

    folder: Path
    problem: SplitFrozenError

    @property
    def line(self) -> str:
        """For a person."""
        return f"{self.folder.name}: {self.problem.what}"


def bundle_folders(folder: Path) -> tuple[Path, ...]:
    """The folder itself, or its sub-folders that hold a manifest, in the order of their names.

    Raises:
        BundleError: it holds more than `MOST_CANDIDATES` bundles.
    """
    if os.path.lexists(folder / MANIFEST_FILE) or not folder.is_dir():
        return (folder,)
    try:
        inside = sorted(
            path.parent for path in folder.glob(f"*/{MANIFEST_FILE}") if not path.parent.name.startswith(".")
        )
    except OSError as problem:
        raise BundleError(
            f"{folder} cannot be read: {problem.strerror}", cure="make the bundles readable for this user"
        ) from problem
    if len(inside) > MOST_CANDIDATES:
        raise BundleError(f"{folder} holds {len(inside)} bundles", cure=f"keep at most {MOST_CANDIDATES}, or name one")
    return tuple(inside) or (folder,)


def accept_bundle(folder: Path, acceptance: Acceptance) -> Candidate:
    """Open one bundle and check everything but what it computes.

    Raises:
        BundleError: it is damaged, or another than the one wanted.
        UntrustedBundle: nobody on the trust list signed it.
    """
    bundle = open_bundle(folder)
    check_id(bundle, acceptance.wanted_id)
    return Candidate(bundle=bundle, signer=check_signature(bundle, acceptance.trust))


def sift(folders: Sequence[Path], acceptance: Acceptance) -> tuple[list[Candidate], list[LeftOut]]:
    """The bundles that can be accepted, each once, and those that cannot."""
    accepted: dict[str, Candidate] = {}
    left_out: list[LeftOut] = []
    for folder in folders:
        try:
            found = accept_bundle(folder, acceptance)
        except SplitFrozenError as problem:
            left_out.append(LeftOut(folder, problem))
        else:
            accepted.setdefault(found.bundle.bundle_id, found)
    return list(accepted.values()), left_out


def check_same_front_end(folder: Path, candidates: Sequence[Candidate]) -> None:
    """Refuse to choose between bundles that are not quantizations of one thing: speed must not decide what is trained.

    Raises:
        MismatchError: naming each and what it is.
    """
    kinds = {front_end_of(candidate.bundle.manifest) for candidate in candidates}
    if len(kinds) > 1:
        listed = "; ".join(f"{candidate.bundle.folder.name}: {_told(candidate)}" for candidate in candidates)
        raise MismatchError(
            f"{folder} holds bundles of different front ends, of which only you can choose: {listed}",
            cure=f"name the one the server trains for, as in {candidates[0].bundle.folder}",
        )


def front_end_of(manifest: Manifest) -> tuple[object, ...]:
    """What must agree for two bundles to be quantizations of one front end: everything but how the graph computes it."""
    base = manifest.base_model
    tokenizer = next(file.sha256 for file in manifest.files if file.name == manifest.tokenizer_file)
    return (
        base.config_sha256,
        base.weights_sha256,
        manifest.geometry,
        manifest.task,
        manifest.wire_codec,
        tokenizer,
    )


def none_left(folder: Path, left_out: Sequence[LeftOut]) -> SplitFrozenError:
    """The error when nothing can be used: of the one kind all failures are, or a damaged bundle."""
    kinds = {type(item.problem) for item in left_out}
    kind = kinds.pop() if len(kinds) == 1 else BundleError
    return kind(
        f"none of the {len(left_out)} bundles in {folder} can be used: {'; '.join(item.line for item in left_out)}",
        cure=left_out[0].problem.cure,
    )


def _told(candidate: Candidate) -> str:
    manifest = candidate.bundle.manifest
    geometry = manifest.geometry
    return (
        f"{manifest.base_model.name}, layers 1 to {geometry.split_layer}, {manifest.task.task}, "
        f"{manifest.wire_codec} rows, at most {geometry.max_tokens} tokens"
    )
