"""From the fp32 graph to the quantized one: as asked for, or as a search on real text finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from sf_contract.codec import FloatRows, WireCodec
from sf_contract.front_end import FrontEnd
from sf_contract.int4 import Int4Parameters
from sf_contract.manifest import ProjectionChoice
from sf_export.graph import serialize
from sf_export.measure import Reference, mean_error
from sf_export.projections import Group, ProjectionQuantizer, groups_of, split_gemms
from sf_export.rounding import WeightRange
from sf_export.schemes import Scheme, candidates, relative_time, weight_range
from sf_export.search import Choice, Option, choose
from sf_export.settings import EmbeddingBits, Quantize, Target

EMBEDDING: Final = "token embedding"
_EMBEDDING_SCHEMES: Final = {EmbeddingBits.INT8: "int8-per-row", EmbeddingBits.INT4: "int4-rotated-per-row"}

Units = Mapping[str, Sequence[Group]]
"""What the search chooses a scheme for: a kind in all layers, or one group alone."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedGraph:
    """A graph's bytes and what was chosen for each kind of weight.

    Attributes:
        graph: for the device.
        exact: the same numbers on this machine, whatever it is: where the target's weights have more levels than every
            processor adds up rightly, integer products take a slower kernel here.
        choices: in words.
    """

    graph: bytes
    exact: bytes
    choices: tuple[ProjectionChoice, ...]


def embedding_choice(bits: EmbeddingBits) -> ProjectionChoice:
    """How a quantized token embedding is named in the manifest."""
    return ProjectionChoice(weights=EMBEDDING, scheme=_EMBEDDING_SCHEMES[bits])


class GraphQuantizer:
    """Quantizes one front end.

    Args:
        model: the fp32 graph; `split_gemms` is applied to it.
        peaks: largest input of every channel by module name, for smoothing.
        target: processors to choose for.
        codec: wire codec of the graph.
        int4: its parameters, for int4 only.
        threads: threads to measure with.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        peaks: Mapping[str, FloatRows],
        target: Target,
        codec: WireCodec,
        int4: Int4Parameters | None,
        threads: int,
    ) -> None:
        split_gemms(model)
        self._groups = groups_of(model)
        self._quantizer = ProjectionQuantizer(model, peaks, weight_range(target))
        self._exact_is_slower = weight_range(target) is WeightRange.FULL
        self._target = target
        self._codec = codec
        self._int4 = int4
        self._threads = threads

    def front_end(self, graph: bytes, *, threads: int | None = None) -> FrontEnd:
        """A graph of this front end, ready to run."""
        return FrontEnd(graph, codec=self._codec, int4=self._int4, threads=threads or self._threads)

    def fp32(self) -> QuantizedGraph:
        """Nothing quantized."""
        return self._everywhere(Scheme.FP32)

    def plain_int8(self) -> QuantizedGraph:
        """Plain dynamic int8 everywhere."""
        return self._everywhere(Scheme.INT8_DYNAMIC)

    def searched(self, reference: Reference, *, max_error: float, say: Callable[[str], None]) -> QuantizedGraph:
        """The fastest schemes found whose mean error on the reference is safely below `max_error`.

        Kinds are chosen for all layers at once; a kind that int8 cannot hold within the budget is chosen layer by layer.
        """
        floor = self._error({}, reference)
        kinds = self._by_kind()
        options = {name: self._options(groups, reference, floor) for name, groups in kinds.items()}
        found = self._choose(kinds, options, reference, floor, max_error)
        slowed = [name for name, option in found.options.items() if _is_slowed_by_the_budget(option, options[name])]
        if any(len(kinds[name]) > 1 for name in slowed):
            say(f"  int8 everywhere would exceed the budget; trying {'; '.join(slowed)} layer by layer")
            units = {name: groups for name, groups in kinds.items() if name not in slowed}
            single = _named([group for name in slowed for group in kinds[name]], lambda group: group.name)
            options = {name: options[name] for name in units}
            options |= {name: self._options(groups, reference, floor) for name, groups in single.items()}
            kinds = {**units, **single}
            found = self._choose(kinds, options, reference, floor, max_error)
        return self._finished(kinds, found)

    def _by_kind(self) -> dict[str, list[Group]]:
        return _named(self._groups, lambda group: group.kind)

    def _options(self, groups: Sequence[Group], reference: Reference, floor: float) -> list[Option[Scheme]]:
        """Each scheme's time and what it adds to the squared error while everything else stays in floating point."""
        options: list[Option[Scheme]] = []
        for scheme in candidates(groups[0].shape):
            error = floor if scheme is Scheme.FLOAT else self._error(_schemes(groups, scheme), reference)
            time = sum(
                relative_time(scheme, group.shape, self._target) * group.shape.inputs * group.shape.outputs
                for group in groups
            )
            options.append(Option(scheme, time, max(error**2 - floor**2, 0.0)))
        return options

    def _choose(
        self,
        units: Units,
        options: Mapping[str, Sequence[Option[Scheme]]],
        reference: Reference,
        floor: float,
        max_error: float,
    ) -> Choice[Scheme]:
        def measure(chosen: Mapping[str, Option[Scheme]]) -> float:
            return self._error(_joined(units, chosen), reference)

        return choose(options, floor=floor, max_error=max_error, measure=measure)

    def _error(self, schemes: Mapping[str, Scheme], reference: Reference) -> float:
        """Mean error on the reference; activations that are not named keep floating point."""
        graph = self._graph(schemes, otherwise=Scheme.FLOAT, exact=self._exact_is_slower)
        return mean_error(self.front_end(graph), reference)

    def _graph(self, schemes: Mapping[str, Scheme], *, otherwise: Scheme, exact: bool = False) -> bytes:
        everything = {group.activation: schemes.get(group.activation, otherwise) for group in self._groups}
        return serialize(self._quantizer.build(everything, exact=exact))

    def _everywhere(self, scheme: Scheme) -> QuantizedGraph:
        choices = tuple(ProjectionChoice(weights=kind, scheme=scheme.value) for kind in self._by_kind())
        return self._both({}, choices, otherwise=scheme)

    def _finished(self, units: Units, found: Choice[Scheme]) -> QuantizedGraph:
        choices = tuple(self._choice(name, units[name], option) for name, option in found.options.items())
        return self._both(_joined(units, found.options), choices, otherwise=Scheme.FLOAT)

    def _both(
        self, schemes: Mapping[str, Scheme], choices: tuple[ProjectionChoice, ...], *, otherwise: Scheme
    ) -> QuantizedGraph:
        graph = self._graph(schemes, otherwise=otherwise)
        exact = self._graph(schemes, otherwise=otherwise, exact=True) if self._exact_is_slower else graph
        self._quantizer.forget_weights()
        return QuantizedGraph(graph=graph, exact=exact, choices=choices)

    def _choice(self, name: str, groups: Sequence[Group], option: Option[Scheme]) -> ProjectionChoice:
        products = sum(group.shape.inputs * group.shape.outputs for group in groups)
        return ProjectionChoice(
            weights=name,
            scheme=option.scheme.value,
            added_error=float(f"{option.squared_error**0.5:.4g}"),
            relative_time=float(f"{option.time / products:.4g}"),
        )


def quantize_graph(
    quantizer: GraphQuantizer,
    requested: Quantize,
    *,
    reference: Reference,
    max_error: float,
    say: Callable[[str], None],
) -> QuantizedGraph:
    """The graph that `--quantize` asks for."""
    match requested:
        case Quantize.NONE:
            return quantizer.fp32()
        case Quantize.INT8:
            return quantizer.plain_int8()
        case Quantize.AUTO:
            return quantizer.searched(reference, max_error=max_error, say=say)


def _is_slowed_by_the_budget(chosen: Option[Scheme], options: Sequence[Option[Scheme]]) -> bool:
    """Whether floating point was taken although int8 would be faster; for tiny products it is not."""
    return not chosen.scheme.is_int8 and any(option.time < chosen.time for option in options)


def _named(groups: Sequence[Group], name_of: Callable[[Group], str]) -> dict[str, list[Group]]:
    named: dict[str, list[Group]] = {}
    for group in groups:
        named.setdefault(name_of(group), []).append(group)
    return named


def _schemes(groups: Sequence[Group], scheme: Scheme) -> dict[str, Scheme]:
    return {group.activation: scheme for group in groups}


def _joined(units: Units, chosen: Mapping[str, Option[Scheme]]) -> dict[str, Scheme]:
    joined: dict[str, Scheme] = {}
    for name, option in chosen.items():
        joined |= _schemes(units[name], option.scheme)
    return joined
