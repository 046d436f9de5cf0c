"""Which studies there are: how each is opened, and how its cells become a report."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from sf_bench.quality.environment import describe_environment
from sf_bench.quality.server_run import Say
from sf_bench.studies.completions import CompletionsStudy
from sf_bench.studies.completions_report import completions_markdown, completions_report
from sf_bench.studies.cuts import CutsStudy
from sf_bench.studies.cuts_report import cuts_markdown, cuts_report
from sf_bench.studies.one_class import OneClassStudy
from sf_bench.studies.one_class_report import one_class_markdown, one_class_report
from sf_bench.studies.report import Ground
from sf_bench.studies.settings import StudySettings
from sf_bench.studies.study import Opened, open_study
from sf_contract.manifest import Task

Written = tuple[msgspec.Struct, str]
"""A report, and the same as Markdown."""


AnyStudy = CutsStudy | OneClassStudy | CompletionsStudy

_STUDIES: Final[Mapping[str, tuple[Callable[[Opened, Say], AnyStudy], Task]]] = {
    "CutsStudy": (CutsStudy, Task.TEXT_CLASSIFICATION),
    "OneClassStudy": (OneClassStudy, Task.TEXT_CLASSIFICATION),
    "CompletionsStudy": (CompletionsStudy, Task.CAUSAL_LM),
}


def open_by_name(name: str, settings: StudySettings, *, say: Say) -> AnyStudy:
    """The study whose class has this name; raises as `open_study` does."""
    kind, task = _STUDIES[name]
    return kind(open_study(settings, task=task, say=say), say)


def run_study(name: str, settings: StudySettings, *, arguments: Sequence[str], say: Say) -> Written:
    """Compute what is missing, and report.

    Args:
        arguments: of the command line, for the report.
    """
    study = open_by_name(name, settings, say=say)
    ground = ground_of(study.opened, arguments)
    match study:
        case CutsStudy():
            cuts = cuts_report(ground, study.cells())
            return cuts, cuts_markdown(cuts)
        case OneClassStudy():
            one_class = one_class_report(ground, study.cells(), devices=settings.devices)
            return one_class, one_class_markdown(one_class)
        case CompletionsStudy():
            completions = completions_report(ground, study.cells())
            return completions, completions_markdown(completions)


def ground_of(opened: Opened, arguments: Sequence[str]) -> Ground:
    """What the report says of models, samples and machine."""
    settings, validation = opened.settings, opened.phrases.validation
    labels = Counter(sample.label for sample in validation if sample.label is not None)
    return Ground(
        base_model=opened.checkpoint.identity.name,
        split_layers=tuple(bundle.manifest.geometry.split_layer for bundle in opened.bundles),
        stated_errors=tuple(bundle.manifest.quantization.error.mean for bundle in opened.bundles),
        first_layer=opened.first_layer,
        samples=settings.samples,
        seeds=settings.seeds,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_samples=settings.batch_samples,
        validation=len(validation),
        floor=max(labels.values()) / len(validation) if labels else None,
        pool=opened.phrases.counts,
        environment=describe_environment(threads=settings.threads, jobs=settings.jobs),
        command=shlex.join(["sf-bench", *arguments]),
    )
