"""Kernels can be held to a few of their configurations."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from linearize.ops.tuning import limit_tuning, spread


class FakeAutotuner:
    def __init__(self, fn: Any, arg_names: Any, configs: Any, key: Any = None) -> None:
        self.configs, self.key = configs, key


@pytest.fixture
def autotuner(monkeypatch: pytest.MonkeyPatch) -> type[FakeAutotuner]:
    """Stands where triton has its own; triton is not needed on a CPU."""
    fake = type("Autotuner", (FakeAutotuner,), {})
    module: Any = types.ModuleType("triton.runtime.autotuner")
    module.Autotuner = fake
    for name in ("triton", "triton.runtime"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "triton.runtime.autotuner", module)
    return fake


def test_kernels_made_afterwards_try_few_configurations(autotuner: type[FakeAutotuner]) -> None:
    limit_tuning(3)
    made = autotuner(None, [], list(range(9)), key=["T"])
    assert made.configs == [0, 4, 8]
    assert made.key == ["T"]


def test_a_kernel_without_configurations_is_left_so(autotuner: type[FakeAutotuner]) -> None:
    limit_tuning(3)
    assert autotuner(None, [], None).configs == []


def test_without_triton_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    limit_tuning()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 36])
def test_the_first_and_the_last_are_among_those_that_stay(count: int) -> None:
    found = spread(list(range(count)), 3)
    assert found == sorted(set(found))
    assert len(found) == min(3, count)
    assert (found[0], found[-1]) == (0, count - 1)
