"""Tests on a GPU ask what kernels compute: each tries a few of its tunings, and a test takes seconds, not minutes."""

from __future__ import annotations

import os

from linearize.ops.tuning import limit_tuning

# ALL_TUNINGS=1 pytest tests/gpu tests what a run would choose, and takes most of an hour.
if not os.environ.get("ALL_TUNINGS"):
    limit_tuning()
