"""The Mamba-2 mixer against golden layers of mmMamba's reference implementation: outputs, losses and every gradient."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from linearize_mamba2.config import Mamba2Config
from linearize_mamba2.mixer import Mamba2Mixer
from safetensors.torch import load_file
from torch import Tensor

from linearize.protocols import AttentionSite

pytestmark = pytest.mark.parity

FIXTURES = Path(os.environ.get("LINEARIZE_FIXTURES", Path(__file__).parent.parent / "fixtures"))
FOLDERS = sorted(FIXTURES.glob("mamba2_layer*"))
CASES = ("init", "perturbed")
OURS = {"A_log_bias": "A_log"}
# The fixtures' own statement: fp32 against fp64 lies 7e-6 from them; other processors sum in another order.
TOLERANCE = 1e-4


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], Mamba2Mixer]:
    """Sizes, tensors and a mixer of those sizes."""
    meta = json.loads((folder / "meta.json").read_text())
    tensors = load_file(folder / "layer.safetensors")
    site = AttentionSite(
        index=0, path="layer", tower="language", layer=0, cache_index=0, hidden_size=meta["hidden_size"],
        num_heads=meta["num_heads"], num_key_value_heads=meta["num_key_value_heads"],
        key_dim=meta["head_dim"], value_dim=meta["head_dim"],
    )  # fmt: skip
    config = Mamba2Config(
        conv_width=meta["d_conv"] if meta["use_conv"] else 0, qk_norm=meta["use_qknorm"], skip=meta["use_D"],
        output_norm=meta["use_gnorm"], gate=meta["use_gnorm"], norm_eps=meta["norm_eps"],
        backend="torch", conv_backend="torch",
    )  # fmt: skip
    return meta, tensors, Mamba2Mixer(config, site)


def put_parameters(mixer: Mamba2Mixer, tensors: dict[str, Tensor], case: str, stage: int) -> Tensor:
    """Loads one case's parameters of one stage; returns the output projection."""
    prefixes = ["init.stage1.param.", f"{case}.stage1.param."]
    if stage > 1:
        prefixes += [f"{case}.stage2.param."]
    state: dict[str, Tensor] = {}
    for prefix in prefixes:
        state |= {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    output = state.pop("o_proj.weight")
    state = {OURS.get(name, name): value for name, value in state.items()}
    missing = set(dict(mixer.named_parameters())) ^ set(state)
    assert not missing, f"parameters that only one side has: {missing}"
    mixer.load_state_dict(state)
    return output


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", [1, 2])
def test_a_layer_stage_gives_the_reference_output_loss_and_gradients(folder: Path, case: str, stage: int) -> None:
    meta, tensors, mixer = load(folder)
    put_parameters(mixer, tensors, case, stage)
    trainable = {OURS.get(name, name) for name in meta[f"stage{stage}_trainable"]}
    for name, parameter in mixer.named_parameters():
        parameter.requires_grad_(name in trainable)
    golden = f"{case}.stage{stage}."

    y_BTNV, _ = mixer(tensors["hidden_states"])
    y_pred = y_BTNV.transpose(1, 2)
    torch.testing.assert_close(y_pred, tensors[golden + "y_pred"], atol=TOLERANCE, rtol=TOLERANCE)

    loss = meta["mse_factor"] * (y_pred - tensors[golden + "y_true"]).square().mean()
    torch.testing.assert_close(loss, tensors[golden + "loss"], atol=0, rtol=TOLERANCE)
    loss.backward()
    compared = set()
    for name, wanted in tensors.items():
        if name.startswith(golden + "grad."):
            ours = OURS.get(name.removeprefix(golden + "grad."), name.removeprefix(golden + "grad."))
            found = mixer.get_parameter(ours).grad
            assert found is not None, f"{ours} got no gradient"
            error = (found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)
            assert error <= TOLERANCE, f"the gradient of {ours} is off by {error:.1e} of its largest entry"
            compared.add(ours)
    assert compared == trainable


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("inputs", "output"), [("hidden_states", "output"), ("hidden_states_long", "output_long")])
def test_the_student_forward_gives_the_reference_output(folder: Path, case: str, inputs: str, output: str) -> None:
    _, tensors, mixer = load(folder)
    o_proj = put_parameters(mixer, tensors, case, 3)
    with torch.no_grad():
        y_BTNV, _ = mixer(tensors[inputs])
    found = y_BTNV.flatten(2) @ o_proj.T
    torch.testing.assert_close(found, tensors[f"{case}.stage3.{output}"], atol=TOLERANCE, rtol=TOLERANCE)


def test_there_are_golden_layers() -> None:
    assert FOLDERS, f"no folder mamba2_layer* in {FIXTURES}"
