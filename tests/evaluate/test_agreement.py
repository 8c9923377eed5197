import math

import pytest
import torch
from torch import nn

from linearize.evaluate.agreement import POSITIONS_AT_ONCE, answer_logits, compare_logits, measure_agreement
from linearize.protocols import AttentionSite
from linearize.protocols.conversation import Conversation, Turn
from linearize.student.convert import convert, teacher_route


class MeanOfValues(nn.Module):
    """A mixer whose output at t is the mean of the values up to t; enough to differ from attention."""

    def __init__(self, site):
        super().__init__()
        self.shape = (site.num_heads, site.value_dim)
        self.v_proj = nn.Linear(site.hidden_size, site.num_heads * site.value_dim)

    def forward(self, x_BTD, *, valid_BT=None, position=None, segments_BT=None, state=None):
        v_BTNV = self.v_proj(x_BTD).unflatten(-1, self.shape)
        weight_BT11 = torch.ones_like(v_BTNV[..., :1, :1]) if valid_BT is None else valid_BT[..., None, None].float()
        total_BTNV = (v_BTNV * weight_BT11).cumsum(1)
        return total_BTNV / weight_BT11.cumsum(1).clamp(min=1), {}


@pytest.fixture
def student(tiny_llama):
    config = tiny_llama.config
    sites = [
        AttentionSite(
            index=index, path=f"model.layers.{index}.self_attn", tower="language", layer=index, cache_index=index,
            hidden_size=config.hidden_size, num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads, key_dim=config.head_dim, value_dim=config.head_dim,
        )
        for index in range(config.num_hidden_layers)
    ]  # fmt: skip
    convert(tiny_llama, sites, {1: MeanOfValues(sites[1])})
    return tiny_llama


def agreement_by_hand(model, adapter, conversations):
    """Token by token in fp64, one conversation at a time, over whole logits."""
    divergences, same = [], []
    for conversation in conversations:
        batch = adapter.batch([conversation])
        with torch.no_grad():
            student = model(**batch.inputs).logits[0].double()
            with teacher_route(model):
                teacher = model(**batch.inputs).logits[0].double()
        for position in range(1, batch.loss_mask_BT.shape[1]):
            if not batch.loss_mask_BT[0, position]:
                continue
            p, q = (logits[position - 1].softmax(-1).tolist() for logits in (teacher, student))
            divergences.append(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)))
            same.append(p.index(max(p)) == q.index(max(q)))
    return divergences, same


def test_agreement_is_the_mean_over_the_tokens_that_the_answers_hold(student, adapter, spelling):
    conversations = spelling(questions=7).questions("echo")
    conversations.append(Conversation((Turn("ab?", "cd"), Turn("and?", "ef")), id="two turns"))
    divergences, same = agreement_by_hand(student, adapter, conversations)
    agreement = measure_agreement(student, adapter, conversations, batch_size=3)
    assert agreement.tokens == len(divergences)
    assert agreement.kl == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)  # fp32 against fp64
    assert agreement.top1 == sum(same) / len(same)
    assert 0 < agreement.top1 < 1, "the two routes must agree here and there for the comparison to say anything"


def test_a_model_agrees_with_itself_entirely(student, adapter, spelling):
    with teacher_route(student):
        agreement = measure_agreement(student, adapter, spelling(questions=4).questions("echo"), batch_size=2)
    assert (agreement.kl, agreement.top1) == (0.0, 1.0)


def test_the_divergence_is_that_of_the_student_from_the_teacher_and_not_the_other_way_round():
    teacher_PW = torch.tensor([[0.9, 0.1]]).log()
    student_PW = torch.tensor([[0.5, 0.5]]).log()
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert compare_logits(teacher_PW, student_PW).kl == pytest.approx(forward, rel=1e-5)


@pytest.mark.parametrize("masked", [-math.inf, torch.finfo(torch.float32).min])
def test_tokens_that_a_model_masks_count_as_if_they_were_not_there(masked):
    generator = torch.Generator().manual_seed(0)
    teacher_PW, student_PW = (torch.randn(3, 6, generator=generator) for _ in range(2))
    expected = compare_logits(teacher_PW[:, 2:], student_PW[:, 2:])
    teacher_PW[:, :2] = student_PW[:, :2] = masked
    found = compare_logits(teacher_PW, student_PW)
    assert found.kl == pytest.approx(expected.kl, rel=1e-5)
    assert found.same_top1 == expected.same_top1


def test_more_positions_than_fit_at_once_are_all_counted():
    generator = torch.Generator().manual_seed(0)
    teacher_PW, student_PW = (torch.randn(POSITIONS_AT_ONCE * 2 + 3, 5, generator=generator) for _ in range(2))
    whole = compare_logits(teacher_PW, student_PW)
    rows = [compare_logits(teacher_PW[[p]], student_PW[[p]]) for p in range(teacher_PW.shape[0])]
    assert whole.tokens == teacher_PW.shape[0]
    assert whole.kl_sum == pytest.approx(sum(row.kl_sum for row in rows), rel=1e-5)
    assert whole.same_top1 == sum(row.same_top1 for row in rows)


def test_logits_exist_at_the_answers_positions_alone(student, adapter, spelling):
    batch = adapter.batch(spelling(questions=3).questions("echo"))
    widths = []
    handle = student.get_output_embeddings().register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    with torch.no_grad():
        logits_PW = answer_logits(student, batch)
        handle.remove()
        whole_BTW = student(**batch.inputs).logits
    assert widths == [int(batch.loss_mask_BT.sum())]
    by_hand = torch.stack([whole_BTW[row, at - 1] for row, at in batch.loss_mask_BT.nonzero().tolist()])
    torch.testing.assert_close(logits_PW, by_hand, rtol=1e-5, atol=1e-5)  # a matrix product of another height


def test_nothing_is_known_of_conversations_without_an_answer_token():
    agreement = compare_logits(torch.zeros(0, 5), torch.zeros(0, 5))
    assert (agreement.kl, agreement.top1, agreement.tokens) == (None, None, 0)
