"""A character-level teacher that is small enough to check by hand, and questions for it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from linearize.protocols import TOKEN_PAD, TOKEN_TEXT, Batch
from linearize.protocols.conversation import Conversation, Turn

torch.set_num_threads(1)

PAD, START, END = 0, 1, 2
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 ?:"
FIRST_CHARACTER = 3
VOCABULARY = FIRST_CHARACTER + len(ALPHABET)


class CharacterAdapter:
    """The part of a TeacherAdapter that evaluation uses; one token a character, the end token closes an answer."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(self, text: str) -> list[int]:
        return [FIRST_CHARACTER + ALPHABET.index(character) for character in text]

    def batch(self, conversations: Sequence[Conversation], *, for_generation: bool = False) -> Batch:
        self.batches.append([item.id for item in conversations])
        rows = []
        for item in conversations:
            ids, answer = [START], [False]
            for number, turn in enumerate(item.turns):
                question = self.encode(turn.question.replace("<image>", ""))
                ids += question
                answer += [False] * len(question)
                if for_generation and number == len(item.turns) - 1:
                    break
                right = [*self.encode(turn.answer), END]
                ids += right
                answer += [True] * len(right)
            rows.append((ids, answer))
        width = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((len(rows), width), PAD)
        attention = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for row, (ids, answer) in enumerate(rows):
            at = slice(width - len(ids), width) if for_generation else slice(0, len(ids))
            input_ids[row, at], attention[row, at], mask[row, at] = torch.tensor(ids), 1, torch.tensor(answer)
        kind = torch.where(attention.bool(), TOKEN_TEXT, TOKEN_PAD).to(torch.uint8)
        return Batch({"input_ids": input_ids, "attention_mask": attention}, mask, kind)

    def num_tokens(self, conversation: Conversation) -> int:
        return int(self.batch([conversation]).inputs["attention_mask"].sum())

    def decode(self, ids_BT: torch.Tensor) -> list[str]:
        # Padding is text here ("_"), as in a tokenizer whose pad id is no special token.
        def text(token: int) -> str:
            return "" if token in (START, END) else "_" if token == PAD else ALPHABET[token - FIRST_CHARACTER]

        return ["".join(text(token) for token in row) for row in ids_BT.tolist()]


class Spelling:
    """A benchmark: repeat the letters; the dial counts them."""

    def __init__(self, questions: int = 12, tasks: Sequence[str] = ("echo", "look"), dialled: bool = True) -> None:
        self.count, self.tasks = questions, tuple(tasks)
        self.dials: Mapping[str, Sequence[int]] = {self.tasks[0]: (1, 3)} if dialled else {}

    def questions(self, task: str, difficulty: int | None = None) -> list[Conversation]:
        draw = random.Random(f"{task} {difficulty}")
        made = []
        for number in range(self.count):
            letters = "".join(draw.choices("abcdef", k=difficulty or draw.randint(1, 5)))
            images = (Image.new("RGB", (28, 28), (number, 0, 0)),) if task == "look" else ()
            question = "<image>" * len(images) + f"{task} {letters}?"
            made.append(Conversation((Turn(question, letters),), images, f"{task}-{difficulty}-{number}", task))
        return made

    def is_correct(self, question: Conversation, answer: str) -> bool:
        return answer == question.turns[-1].answer


@pytest.fixture
def adapter() -> CharacterAdapter:
    return CharacterAdapter()


@pytest.fixture
def spelling() -> type[Spelling]:
    return Spelling


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
        initializer_range=0.6,
    )  # fmt: skip
    return LlamaForCausalLM(config)
