"""What checking and planning a recipe read of its data, and what they say of records that the run will leave out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkout import EXAMPLES
from PIL import Image
from typer.testing import CliRunner

from linearize.cli.app import app
from linearize.data import images
from linearize.data.llava_json import LlavaJsonSource
from linearize.plan.check import check_recipe
from linearize.plugin.discovery import Plugins


def recipe(folder: Path, records: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return {
        "run": {"name": "tiny"},
        "teacher": {"type": "hovle", "checkpoint": "embedded"},
        "student": {"mixer": {"type": "mamba2"}},
        "data": {"type": "llava_json", "path": str(folder / "records.jsonl"), **options},
        "stages": [{
            "name": "align", "objective": {"type": "layer_mse"}, "train": ["new"], "steps": 1, "batch_size": 1,
            "lr": 1e-3,
        }],
    }  # fmt: skip


def said(question: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "two"}], **more}


def test_a_plan_decodes_no_image_and_opens_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (900, 30), "red").save(tmp_path / "wide.png")
    opened, decoded = [], []
    open_file, upright = LlavaJsonSource._open, images._upright
    monkeypatch.setattr(LlavaJsonSource, "_open", lambda source: (opened.append(source), open_file(source)))
    tables = recipe(tmp_path, [said("how many?"), *(said("how many?", image="wide.png") for _ in range(9))])
    checked = check_recipe(tables, [], Plugins.discover())
    monkeypatch.setattr(images, "_upright", lambda *arguments: (decoded.append(1), upright(*arguments))[1])
    planned = checked.with_tokens()
    assert (len(opened), decoded) == (1, [])
    whole = [checked.adapter.num_tokens(checked.source[index]) for index in range(10)]
    assert planned.plan.stages[0].tokens == round(sum(whole) / 10)
    assert len(decoded) == 9


def test_what_the_teacher_finds_too_long_is_left_out_of_plan_and_run(tmp_path: Path) -> None:
    tables = recipe(tmp_path, [said("how many?"), said("red " * 400)], max_tokens=200)
    checked = check_recipe(tables, [], Plugins.discover())
    assert checked.source.bad_records() == []  # type: ignore[attr-defined]
    tokens = checked.with_tokens().plan.stages[0].tokens
    assert tokens == checked.adapter.num_tokens(checked.source[0])
    assert [bad.fault for bad in checked.source.bad_records()] == ["too long"]  # type: ignore[attr-defined]


def test_check_names_the_bad_records_of_a_good_recipe(tmp_path: Path) -> None:
    tables = recipe(tmp_path, [said("how many?"), said("how many?", image="gone.png")], max_bad=1)
    settings = [f"data={{ type = 'llava_json', path = '{tables['data']['path']}', max_bad = 1 }}"]
    settings += ["evaluate.benchmarks=[]"]
    arguments = ["check", str(EXAMPLES / "mmmamba_hovle.toml")]
    result = CliRunner().invoke(app, [*arguments, *(part for one in settings for part in ("--set", one))])
    assert result.exit_code == 0, result.output
    assert "records.jsonl: 1 record skipped (1 image not found)\n  line 2: image not found: gone.png" in result.output
