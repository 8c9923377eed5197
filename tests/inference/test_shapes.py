"""Shapes are what plug-ins offer: a configuration, of which models with random weights are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from linearize import api
from linearize.errors import LinearizeError, PluginError
from linearize.inference.options import BenchOptions
from linearize.inference.shapes import ShapeOptions, find_shape, shape_subjects
from linearize.plugin.discovery import Plugins
from linearize.plugin.hookspecs import hookimpl
from linearize.plugin.specs import TeacherSpec
from linearize.student.convert import linearized_sites

EVERY_OTHER = '{ type = "every", keep = 2 }'


class Strangers:
    """A plug-in with a shape of its own, whose models are a teacher's of the checkout."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @hookimpl
    def linearize_register(self, register: Any) -> None:
        register(
            TeacherSpec(
                name="strange", build="linearize_hovle.adapter:HovleAdapter",
                config="linearize_hovle.config:HovleTeacherConfig",
                source="https://example.org", shapes={"strange-0.3m": self.folder},
            )
        )  # fmt: skip


def with_stranger(folder: str = "linearize_hovle:embedded") -> Plugins:
    plugins = Plugins.discover()
    plugins.add(Strangers(folder), name="strange")
    return plugins


def test_a_strangers_shape_is_measured_with_its_students(tmp_path: Path) -> None:
    shape = ShapeOptions("strange-0.3m", mixer="gla", layouts=("all", EVERY_OTHER))
    options = BenchOptions(lengths=(4,), new_tokens=5, rounds=1, max_rows=0, engines=("eager",), device="cpu")
    found = api.bench((), options, shape=shape, out=tmp_path, plugins=with_stranger()).bench
    assert [(model.name, model.teacher) for model in found.models] == [
        ("teacher", ""), ("linear", "teacher"), ("hybrid", "teacher"),
    ]  # fmt: skip
    assert "attention kept at 4 of 8" in found.models[2].what
    assert [cell.failed for cell in found.cells] == ["", "", ""]


def test_students_of_a_shape_have_the_dtypes_of_loaded_ones() -> None:
    shape = ShapeOptions("strange-0.3m", mixer="mamba2", layouts=(EVERY_OTHER,))
    _, hybrid = shape_subjects(shape, with_stranger(), device="cpu", dtype="bfloat16")
    model = hybrid.load(torch.bfloat16, "cpu")
    assert [slot.site.index for slot in linearized_sites(model)] == [1, 3, 5, 7]
    dtypes = {name.rpartition(".")[2]: tensor.dtype for name, tensor in model.named_parameters()}
    assert dtypes["A_log"] == torch.float32
    assert {dtype for name, dtype in dtypes.items() if name == "weight"} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "name", [name for spec in Plugins.discover().registry.all(TeacherSpec) for name in spec.shapes]
)
def test_shapes_of_the_checkout_are_configurations_of_their_teachers(name: str) -> None:
    teacher = find_shape(name, Plugins.discover())
    adapter = teacher.build()
    assert len(adapter.sites()) > 20
    with torch.device("meta"):
        model = adapter.random_model(dtype=torch.bfloat16, device="meta")
    assert model.dtype == torch.bfloat16
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert billions == pytest.approx({"b": 1.0, "m": 1e-3}[name[-1]] * float(name.rpartition("-")[2][:-1]), rel=0.1)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (ShapeOptions("strange-0.3"), r"unknown shape 'strange-0\.3'\. Did you mean 'strange-0\.3m'"),
        (ShapeOptions("strange-0.3m"), r"no students of its own: say --mixer TYPE \(installed: .*gla.*--mixer none"),
        (ShapeOptions("strange-0.3m", "glaa"), "unknown mixer 'glaa'. Did you mean 'gla'"),
        (ShapeOptions("strange-0.3m", "{ type = "), "--mixer { type = : expected a type, or a TOML table"),
        (ShapeOptions("strange-0.3m", "gla", ("every",)), r"--layout every has problems:\n  - keep: is required"),
        (
            ShapeOptions("strange-0.3m", "gla", ('{ type = "keep", sites = [9] }',)),
            "site 9 asked for",
        ),
        (ShapeOptions("strange-0.3m", "gla", backend="cudnn"), "backend 'cudnn' does not compute"),
    ],
)
def test_what_is_wrong_with_a_shape_is_told(shape: ShapeOptions, text: str) -> None:
    with pytest.raises(LinearizeError, match=text):
        shape_subjects(shape, with_stranger(), device="cpu", dtype="float32")


def test_the_teacher_of_a_shape_can_be_measured_alone() -> None:
    only = shape_subjects(ShapeOptions("strange-0.3m", "none"), with_stranger(), device="cpu", dtype="float32")
    assert [subject.name for subject in only] == ["teacher"]


def test_a_shape_that_a_plugin_cannot_keep_is_the_plugins_fault() -> None:
    with pytest.raises(
        PluginError, match=r"teacher 'strange' names linearize_hovle:nothing as shape 'strange-0\.3m', but"
    ):
        find_shape("strange-0.3m", with_stranger("linearize_hovle:nothing"))


def test_an_adapter_that_makes_no_random_models_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from linearize_hovle.adapter import HovleAdapter

    monkeypatch.delattr(HovleAdapter, "random_model")
    with pytest.raises(PluginError, match="offers shapes, but its adapter has no random_model"):
        shape_subjects(ShapeOptions("strange-0.3m", "gla"), with_stranger(), device="cpu", dtype="float32")


def test_targets_or_a_shape_are_asked_for_but_not_both() -> None:
    with pytest.raises(LinearizeError, match="or else a shape; got nothing"):
        api.bench([])
    with pytest.raises(LinearizeError, match="or else a shape; got hovle and shape 'x'"):
        api.bench(["hovle"], shape=ShapeOptions("x"))
