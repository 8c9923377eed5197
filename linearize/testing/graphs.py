"""Counting the graphs that a compiled decoding step is made of."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule
from transformers import CompileConfig


class Graphs:
    """A compiler for ``torch.compile`` that runs each graph as it is.

    Attributes:
        number: graphs so far: one for each break of a step, and all of them again where a step was compiled anew.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, graph: GraphModule, example_inputs: Any) -> Any:
        """The graph as a function."""
        del example_inputs
        self.number += 1
        return graph.forward

    def __deepcopy__(self, memo: Any) -> Graphs:
        """Itself: ``generate()`` copies its options."""
        return self


def compiled_by(graphs: Graphs) -> CompileConfig:
    """What makes ``generate()`` compile its step on a CPU too; a step that is no single graph is an error."""
    config = CompileConfig(backend=graphs, mode=None, fullgraph=True)
    config._compile_all_devices = True
    return config
