"""Every test begins with the same random numbers, whichever ran before it in the process."""

from __future__ import annotations

import random
import sys

import pytest


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    random.seed(0)
    for name in ("numpy", "torch"):
        module = sys.modules.get(name)
        if module is not None:
            (module.random.seed if name == "numpy" else module.manual_seed)(0)
