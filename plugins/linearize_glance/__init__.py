"""Small visual questions that are drawn on the spot, without end, from a seed; each comes with its answer."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import BenchmarkSpec, DataSpec

SOURCE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
"""Where the handwritten digits come from; everything else is drawn by this package."""


@hookimpl
def linearize_register(register: Register) -> None:
    """Adds the data source and the benchmark, both called ``glance``."""
    register(
        DataSpec(
            name="glance",
            build="linearize_glance.source:GlanceSource",
            config="linearize_glance.config:GlanceConfig",
            source=SOURCE,
            summary="drawn visual questions with answers, endless and reproducible by index",
        )
    )
    register(
        BenchmarkSpec(
            name="glance",
            build="linearize_glance.benchmark:GlanceBenchmark",
            config="linearize_glance.config:GlanceBenchmarkConfig",
            source=SOURCE,
            summary="held-out drawn visual questions, scored by exact match",
        )
    )
