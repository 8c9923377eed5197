"""HoVLE against golden data of the reference implementation: hidden states, logits, greedy tokens, checkpoint files.

Every folder ``hovle_*`` is a case. Sizes, cases and names of hidden states are read from the folder's own files.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import checkout
import pytest
import torch
from linearize_hovle.checkpoint import load_model, published_state, read_tensors, save_model
from linearize_hovle.density import dense_layout
from linearize_hovle.modeling import HovleForConditionalGeneration
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.parity

FIXTURES = Path(os.environ.get("LINEARIZE_FIXTURES", checkout.FIXTURES))
FOLDERS = sorted(folder for folder in FIXTURES.glob("hovle_*") if folder.is_dir())

# float64 differs from the golden float32 by up to 3e-5 of the largest value; another order of sums costs as much.
RELATIVE = 1e-4


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def model(folder: Path) -> HovleForConditionalGeneration:
    return load_model(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def golden(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "io.safetensors")


def prefixes(golden: dict[str, Tensor], leaf: str) -> list[str]:
    """Names of the cases that hold such a tensor, such as "image" for "image.logits"."""
    return sorted({match[1] for key in golden if (match := re.fullmatch(rf"(\w+)\.{leaf}", key))})


def inputs(golden: dict[str, Tensor], case: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: golden[f"{case}.{name}"] for name in names if f"{case}.{name}" in golden}


def capture(model: HovleForConditionalGeneration) -> tuple[dict[str, Tensor], list[Any]]:
    """Every intermediate that the golden data names, caught by hooks; the second value removes them."""
    caught: dict[str, Tensor] = {}

    def output(name: str) -> Any:
        return lambda module, args, result: caught.__setitem__(name, result)

    def entering(name: str) -> Any:
        return lambda module, args: caught.__setitem__(name, args[0])

    embedding, language = model.embedding_model, model.language_model
    handles = [
        embedding.vision.register_forward_hook(output("vision_patch_embed")),
        embedding.layers[0].register_forward_pre_hook(entering("embedding_input")),
        language.layers[0].register_forward_pre_hook(entering("llm_input")),
        language.norm.register_forward_hook(output("llm_norm")),
    ]
    handles += [layer.register_forward_hook(output(f"embedding_layer_{i}")) for i, layer in enumerate(embedding.layers)]
    handles += [layer.register_forward_hook(output(f"llm_layer_{i}")) for i, layer in enumerate(language.layers)]
    return caught, handles


def assert_close(name: str, ours: Tensor, golden: Tensor, valid_BT: Tensor | None) -> None:
    assert ours.numel() == golden.numel(), f"{name}: {list(ours.shape)} instead of {list(golden.shape)}"
    ours = ours.reshape(golden.shape)
    if valid_BT is not None and golden.shape[:2] == valid_BT.shape:
        ours, golden = ours[valid_BT], golden[valid_BT]
    error = float((ours - golden).abs().max() / golden.abs().max())
    assert error <= RELATIVE, (
        f"{name}: largest difference is {error:.1e} of the largest value, allowed are {RELATIVE:.0e}"
    )


@torch.no_grad()
def test_every_hidden_state_and_logit_is_the_reference_s(
    model: HovleForConditionalGeneration, golden: dict[str, Tensor]
) -> None:
    cases = sorted({key.split(".")[0] for key in golden if re.fullmatch(r"\w+\.logits(_last\d+)?", key)})
    assert cases, "io.safetensors holds no logits"
    for case in cases:
        caught, handles = capture(model)
        given = inputs(golden, case, ("input_ids", "attention_mask", "position_ids", "pixel_values"))
        try:
            result = model(**given)
        finally:
            for handle in handles:
                handle.remove()
        if result.image_hidden_states is not None:
            caught["vision_tokens"] = result.image_hidden_states
        mask = given.get("attention_mask")
        valid_BT = None if mask is None else mask.bool()
        for key, expected in golden.items():
            if key.startswith(f"{case}.hidden."):
                name = key.removeprefix(f"{case}.hidden.")
                assert_close(key, caught[name], expected, valid_BT)
            elif key == f"{case}.logits":
                assert_close(key, result.logits, expected, valid_BT)
            elif key.startswith(f"{case}.logits_last"):
                assert_close(key, result.logits[:, -expected.shape[1] :], expected, None)


@torch.no_grad()
def test_image_tokens_expand_to_the_reference_s_dense_ids(
    model: HovleForConditionalGeneration, golden: dict[str, Tensor]
) -> None:
    cases = prefixes(golden, "hd_input_ids")
    if not model.config.embedding.shuffles_after_layers or not cases:
        pytest.skip("the shuffle comes before the layers, or the folder holds no dense ids")
    for case in cases:
        ids_BT, expected_BS = golden[f"{case}.input_ids"], golden[f"{case}.hd_input_ids"]
        image_BT = ids_BT == model.config.image_token_id
        layout = dense_layout(image_BT, torch.ones_like(image_BT), model.config.embedding.shuffle_factor**2)
        assert torch.equal(ids_BT.gather(1, layout.source_BS), expected_BS)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_greedy_tokens_are_the_reference_s(
    model: HovleForConditionalGeneration, golden: dict[str, Tensor], use_cache: bool
) -> None:
    cases = prefixes(golden, "new_ids")
    assert cases, "io.safetensors holds no greedy tokens"
    for case in cases:
        expected = golden[f"{case}.new_ids"]
        ids_BT = model.generate(
            **inputs(golden, case, ("input_ids", "attention_mask", "pixel_values")),
            max_new_tokens=expected.shape[1],
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
        )
        assert ids_BT[:, -expected.shape[1] :].tolist() == expected.tolist(), case


def test_a_checkpoint_is_written_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    stored = load_model(folder)
    save_model(stored, tmp_path)
    before, after = read_tensors(folder), read_tensors(tmp_path)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_published_tensors_carry_the_published_names(model: HovleForConditionalGeneration, folder: Path) -> None:
    _, state = published_state(model)
    assert state.keys() == read_tensors(folder).keys()
