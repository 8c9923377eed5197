"""The SmolVLM examples from end to end, on tiny checkpoints of the same classes and a few records."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import EXAMPLES
from PIL import Image
from typer.testing import CliRunner

import linearize
from linearize.api import check, override_texts
from linearize.cli.app import app
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.protocols.conversation import Conversation, Turn
from linearize.student.convert import linearized_sites

EXAMPLE = EXAMPLES / "smolvlm_mamba2.toml"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Eight records, half of them with an image."""
    lines = []
    for number in range(8):
        Image.new("RGB", (30 + number, 40), (30 * number, 90, 10)).save(tmp_path / f"{number}.png")
        messages = [{"from": "human", "value": f"how many red? {number}"}, {"from": "gpt", "value": "two green"}]
        lines.append(
            {"id": str(number), "conversations": messages} | ({"image": f"{number}.png"} if number % 2 else {})
        )
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.filterwarnings("ignore:.*beam search", "ignore:__array__")
@pytest.mark.parametrize(
    ("mixer", "name", "options"),
    [
        ("mamba2", "smolvlm", {"do_image_splitting": False}),
        ("gated_delta_net", "smolvlm", {"do_image_splitting": False}),
        ("mamba2", "qwen2_5_vl", {"size": {"shortest_edge": 64, "longest_edge": 256}}),
        ("mamba2", "llava_onevision", {}),
        ("mamba2", "internvl", {"max_patches": 1}),
        ("mamba2", "fuyu", {}),
    ],
)
def test_the_example_runs_and_its_student_answers(
    checkpoint: Callable[[str], Path],
    records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mixer: str,
    name: str,
    options: dict[str, Any],
) -> None:
    """With the checkpoint's own class, processor and chat template, on whatever family it is of."""
    monkeypatch.chdir(tmp_path)
    overrides = {
        "run.dtype": "float32", "run.device": "cpu", "teacher.checkpoint": str(checkpoint(name)),
        "teacher.processor": options, "student.layout.keep": 2, "data.path": str(records), "data.images": str(tmp_path),
    }  # fmt: skip
    overrides |= {f"stages.{stage}.{key}": value for stage in ("align-new", "align-mixer", "distill")
                  for key, value in (("steps", 2), ("batch_size", 2))}  # fmt: skip
    example = EXAMPLES / f"smolvlm_{mixer}.toml"
    plan = check(example, overrides).plan
    assert (len(plan.sites), len(plan.linear)) == (2, 1)
    assert plan.sites[0].path.endswith(".layers.0.self_attn")
    result = linearize.run(example, overrides)
    assert result.folder.name == f"smolvlm-{mixer.replace('_', '-')}"
    student = linearize.load_student(result.folder / "student")
    assert student.config.model_type == f"linearize_{name}"
    (linear,) = (slot for slot in linearized_sites(student) if slot.linear)
    assert type(linear.mixer) is Plugins.discover().registry.get(MixerSpec, mixer).builder()
    teacher = linearize.load_teacher("transformers", checkpoint(name), processor=options)
    question = Conversation((Turn("<image>\nhow many?", ""),), (Image.new("RGB", (40, 28)),))
    batch = teacher.adapter.batch([question], for_generation=True)
    ids = student.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
    assert len(teacher.adapter.decode(ids[:, batch.inputs["input_ids"].shape[1] :])) == 1
    assert bool(torch.isfinite(student(**batch.inputs).logits).all())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gemma3", "its attention reads the tokens of an image in both directions"),
        ("paligemma", "its attention reads the prompt up to its first answer, images and question, in both directions"),
        ("mllama", "its cross-attention layers are no sites"),
        ("llava", None),
    ],
)
def test_check_and_plan_tell_what_a_student_cannot_do(
    checkpoint: Callable[[str], Path], records: Path, tmp_path: Path, name: str, told: str | None
) -> None:
    overrides = {
        "run.dtype": "float32", "run.device": "cpu", "teacher.checkpoint": str(checkpoint(name)),
        "teacher.processor": {}, "student.layout": {"type": "all"}, "data.path": str(records),
        "data.images": str(tmp_path),
    }  # fmt: skip
    arguments = [str(EXAMPLE), *(part for text in override_texts(overrides) for part in ("--set", text))]
    for command in ("check", "plan"):
        result = CliRunner().invoke(app, [command, *arguments])
        assert result.exit_code == 0, result.output
        said = " ".join(result.output.split())
        assert told is None or f"warning: '{name}': {told}" in said
        assert ("warning" in said) is (told is not None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        linearize.load_teacher("transformers", checkpoint(name))
    assert [told in str(one.message) for one in caught if told] == ([True] if told else [])


def test_options_of_the_processor_reach_it(checkpoint: Callable[[str], Path]) -> None:
    """Without its tiles an image takes fewer tokens."""
    one = Conversation((Turn("<image>\nhow many?", "two"),), (Image.new("RGB", (40, 28)),))
    tiled = linearize.load_teacher("transformers", checkpoint("smolvlm")).adapter
    whole = linearize.load_teacher(
        "transformers", checkpoint("smolvlm"), processor={"do_image_splitting": False}
    ).adapter
    assert int((whole.batch([one]).token_kind_BT == 2).sum()) == 4
    assert int((tiled.batch([one]).token_kind_BT == 2).sum()) == 5 * 4
