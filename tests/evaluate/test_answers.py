import torch

from linearize.evaluate.answers import generate_answers
from linearize.evaluate.order import length_ordered_batches
from linearize.protocols.conversation import Conversation, Turn


def uncached_answer(model, adapter, question, max_new_tokens):
    """Greedy decoding of one question without cache, batch, padding or generate()."""
    ids = adapter.batch([question], for_generation=True).inputs["input_ids"]
    new = []
    with torch.no_grad():
        for _ in range(max_new_tokens):
            token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
            if token == model.generation_config.eos_token_id:
                break
            new.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return adapter.decode(torch.tensor([new], dtype=torch.long))[0]


def test_batched_answers_are_those_of_each_question_alone_in_the_order_asked(tiny_llama, adapter, spelling):
    questions = spelling(questions=9).questions("echo")
    alone = [uncached_answer(tiny_llama, adapter, question, 6) for question in questions]
    together = generate_answers(tiny_llama, adapter, questions, batch_size=4, max_new_tokens=6)
    assert together == alone
    assert len(set(alone)) > 3, "a model that always says the same would prove nothing"
    assert len({len(answer) for answer in alone}) > 1, "some answers must end before others"


def test_an_answer_stops_at_its_end_token_whatever_generate_appends(tiny_llama, adapter, monkeypatch):
    end = tiny_llama.generation_config.eos_token_id

    def generate(input_ids, **_):
        letters = torch.tensor([[3, 4, end, 0, 5], [end, 0, 0, 0, 0], [6, 7, 8, 9, 10]])
        return torch.cat([input_ids, letters], 1)

    monkeypatch.setattr(tiny_llama, "generate", generate)
    questions = [Conversation((Turn(text, ""),)) for text in ("abc", "abd", "abe")]
    assert generate_answers(tiny_llama, adapter, questions, batch_size=3, max_new_tokens=5) == ["ab", "", "defgh"]


def test_answering_leaves_every_module_in_the_mode_it_was_in(tiny_llama, adapter, spelling):
    tiny_llama.eval()
    tiny_llama.model.layers[1].train()
    before = [module.training for module in tiny_llama.modules()]
    seen = []
    tiny_llama.model.layers[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    generate_answers(tiny_llama, adapter, spelling(questions=2).questions("echo"), batch_size=2, max_new_tokens=2)
    assert [module.training for module in tiny_llama.modules()] == before
    assert seen
    assert not any(seen)


def test_progress_counts_every_question_once(tiny_llama, adapter, spelling):
    counts = []
    generate_answers(
        tiny_llama, adapter, spelling(questions=7).questions("echo"), batch_size=3, max_new_tokens=1,
        progress=counts.append,
    )  # fmt: skip
    assert counts == [3, 3, 1]


def test_batches_hold_each_conversation_once_and_the_longest_come_first(adapter, spelling):
    questions = spelling(questions=10).questions("echo")
    batches = list(length_ordered_batches(questions, 4, adapter.num_tokens))
    lengths = [len(questions[index].turns[0].question) for batch in batches for index in batch]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(index for batch in batches for index in batch) == list(range(10))
    assert lengths == sorted(lengths, reverse=True)
