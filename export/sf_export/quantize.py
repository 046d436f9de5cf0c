"""From the fp32 graph to the quantized one: as asked for, or as a search on real text finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from sf_contract.codec import FloatRows, WireCodec
from sf_contract.front_end import FrontEnd
from sf_contract.manifest import ProjectionChoice
from sf_export.graph import serialize
from sf_export.measure import Reference, mean_error
from sf_export.projections import ProjectionQuantizer, Scheme, kinds, split_gemms
from sf_export.search import SAFETY, SearchResult, search_schemes
from sf_export.settings import Quantize

LADDER: Final = (Scheme.INT8_PER_TOKEN, Scheme.INT8_SMOOTHED, Scheme.FP32)
EMBEDDING_CHOICE: Final = ProjectionChoice(weights="token embedding", scheme="int8-per-row")


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedGraph:
    """A graph's bytes and what was chosen for each kind of weight."""

    graph: bytes
    choices: tuple[ProjectionChoice, ...]


class GraphQuantizer:
    """Quantizes one front end.

    Args:
        model: the fp32 graph; `split_gemms` is applied to it.
        peaks: largest input of every channel by module name, for smoothing.
        codec: wire codec of the graph.
        threads: threads to measure with.
    """

    def __init__(self, model: ir.Model, *, peaks: Mapping[str, FloatRows], codec: WireCodec, threads: int) -> None:
        split_gemms(model)
        self._kinds = kinds(model)
        self._quantizer = ProjectionQuantizer(model, peaks)
        self._codec = codec
        self._threads = threads

    def fp32(self) -> QuantizedGraph:
        """Nothing quantized."""
        return self._finished(dict.fromkeys(self._kinds, Scheme.FP32))

    def plain_int8(self) -> QuantizedGraph:
        """Plain dynamic int8 everywhere."""
        return self._finished(dict.fromkeys(self._kinds, Scheme.INT8_DYNAMIC))

    def searched(self, reference: Reference, *, max_error: float) -> QuantizedGraph:
        """The cheapest schemes found whose mean error on the reference is safely below `max_error`."""
        result: SearchResult[Scheme] = search_schemes(
            self._kinds, LADDER, target=SAFETY * max_error, measure=lambda choices: self._error(choices, reference)
        )
        return self._finished(result.choices)

    def _error(self, choices: Mapping[str, Scheme], reference: Reference) -> float:
        front_end = FrontEnd(serialize(self._quantizer.build(choices)), codec=self._codec, threads=self._threads)
        return mean_error(front_end, reference)

    def _finished(self, choices: Mapping[str, Scheme]) -> QuantizedGraph:
        named = tuple(ProjectionChoice(weights=kind, scheme=scheme.value) for kind, scheme in choices.items())
        return QuantizedGraph(graph=serialize(self._quantizer.build(choices)), choices=named)


def quantize_graph(
    quantizer: GraphQuantizer, requested: Quantize, *, reference: Reference, max_error: float
) -> QuantizedGraph:
    """The graph that `--quantize` asks for."""
    match requested:
        case Quantize.NONE:
            return quantizer.fp32()
        case Quantize.INT8:
            return quantizer.plain_int8()
        case Quantize.AUTO:
            return quantizer.searched(reference, max_error=max_error)
