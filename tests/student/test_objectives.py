"""What a stage minimises, on tiny teachers: the layer loss at every kind of site, the error of hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linearize.distill.losses import kl_sum
from linearize.distill.objectives import LayerMse, LogitKl, Measured
from linearize.distill.options import LayerMseConfig, LogitKlConfig
from linearize.protocols import TOKEN_IMAGE, TOKEN_PAD, TOKEN_TEXT, Batch
from linearize.student.convert import linearized_sites, teacher_route

IMAGE_ID = 60


def as_batch(inputs: dict[str, Tensor]) -> Batch:
    """The conftest's prompts as if every text token were an answer's."""
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    kind = torch.where(ids == IMAGE_ID, TOKEN_IMAGE, TOKEN_TEXT).to(torch.uint8)
    kind[~valid] = TOKEN_PAD
    return Batch(dict(inputs), kind == TOKEN_TEXT, kind)


def gradients(model: Any) -> dict[str, Tensor]:
    """The gradient of every mixer parameter, and none of the teacher's own."""
    found = {}
    for name, parameter in model.named_parameters():
        if ".mixer." in name:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), f"{name} has a gradient that is not finite"
            found[name] = parameter.grad
        else:
            assert parameter.grad is None, f"{name} is the teacher's and has a gradient"
    return found


def row(batch: Batch, number: int) -> Batch:
    """One conversation of a batch."""
    inputs = {name: tensor[number : number + 1] for name, tensor in batch.inputs.items()}
    one = slice(number, number + 1)
    return Batch(inputs, batch.loss_mask_BT[one], batch.token_kind_BT[one])


def kl(model: Any, batch: Batch, **options: Any) -> Measured:
    objective = LogitKl(LogitKlConfig(**options))
    return objective.backward(model, batch, [], objective.weight(batch))


def test_every_objective_reaches_every_mixer_and_nothing_else_in_every_kind_of_decoder(teacher: Any) -> None:
    # "hovle_post" runs its first tower over patches, so that a site there has more rows than the batch has tokens.
    model, batch = teacher.convert(), as_batch(teacher.inputs)
    sites = [site.index for site in teacher.sites]
    objective = LayerMse(LayerMseConfig())
    measured = objective.backward(model, batch, sites, objective.weight(batch))
    gradients(model)
    assert sorted(measured.sites) == sites
    for hidden_weight in (0.0, 0.5):
        model.zero_grad()
        kl(model, batch, hidden_weight=hidden_weight)
        gradients(model)


def test_the_layer_loss_is_a_mean_over_the_rows_of_the_tower_that_the_site_is_in(teacher: Any) -> None:
    model, batch = teacher.convert(), as_batch(teacher.inputs)
    objective = LayerMse(LayerMseConfig(scale=1.0))
    measured = objective.backward(model, batch, [0], objective.weight(batch))
    squared_error = float(measured.sites[0].squared_error)  # summed over rows and channels
    rows = int(batch.inputs["attention_mask"].sum())
    if model.config.model_type == "hovle" and model.config.embedding.shuffles_after_layers:
        rows += 3 * int((batch.token_kind_BT == TOKEN_IMAGE).sum())  # four patches in the place of an image token
    width = teacher.sites[0].num_heads * teacher.sites[0].value_dim
    assert float(measured.loss) == pytest.approx(squared_error / rows / width, rel=1e-5)


def test_the_error_of_hidden_states_is_that_of_the_normed_states_of_every_layer(llama: Any) -> None:
    model, batch = llama.convert(), as_batch(llama.inputs)
    kl(model, batch, hidden_weight=0.7, tokens="text")
    found = gradients(model)
    found = {name: gradient.clone() for name, gradient in found.items()}
    model.zero_grad()

    predicting = torch.zeros_like(batch.loss_mask_BT)
    predicting[:, :-1] = batch.loss_mask_BT[:, 1:] & batch.inputs["attention_mask"][:, :-1].bool()
    valid = batch.inputs["attention_mask"].bool()

    def run() -> tuple[Tensor, list[Tensor]]:
        output = model(**batch.inputs, output_hidden_states=True, use_cache=False)
        # The last entry is normed already; the first is what the first layer gets, equal on both routes.
        layers = zip(output.hidden_states[1:-1], model.model.layers[1:], strict=True)
        return output.logits, [*(layer.input_layernorm(h) for h, layer in layers), output.hidden_states[-1]]

    with torch.no_grad(), teacher_route(model):
        teacher_logits, teacher_states = run()
    student_logits, student_states = run()
    loss = kl_sum(teacher_logits[predicting], student_logits[predicting])
    for wanted, got in zip(teacher_states, student_states, strict=True):
        for b, t in valid.nonzero().tolist():
            error = (got[b, t] - wanted[b, t]).square().sum() / wanted[b, t].square().sum()
            loss = loss + 0.7 * error / len(teacher_states)
    (loss / int(predicting.sum())).backward()
    for name, gradient in gradients(model).items():
        # The same sums in fp32, in another order.
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_the_measured_loss_is_the_kl_alone(llama: Any) -> None:
    model, batch = llama.convert(), as_batch(llama.inputs)
    alone, beside = kl(model, batch), kl(model, batch, hidden_weight=2.0)
    assert torch.equal(torch.as_tensor(alone.loss), torch.as_tensor(beside.loss))


def test_splitting_a_batch_changes_the_gradient_by_rounding_only(llama: Any) -> None:
    model, batch = llama.convert(), as_batch(llama.inputs)
    objective = LogitKl(LogitKlConfig(hidden_weight=0.5))
    total = objective.weight(batch)
    objective.backward(model, batch, [], total)
    whole = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    for number in range(2):
        objective.backward(model, row(batch, number), [], total)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-6)


def test_sites_before_the_first_mixer_take_no_part_in_the_error_of_hidden_states(llama: Any) -> None:
    model, batch = llama.convert(linear=[2]), as_batch(llama.inputs)
    kl(model, batch, hidden_weight=0.5)
    with_gradient = {
        slot.site.index
        for slot in linearized_sites(model)
        if slot.mixer is not None and any(p.grad is not None for p in slot.mixer.parameters())
    }
    assert with_gradient == {2}
