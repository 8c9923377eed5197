"""A second turn from the cache says what reading the conversation anew says, in every family; or it is read anew."""

from __future__ import annotations

import pytest
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.support import TURN_END, Family
from PIL import Image
from test_families import make_student

from linearize.inference.speaker import History, Sampling, Speaker

READ_AGAIN = {"nothing": {"paligemma"}, "an image": {"paligemma", "mllama"}}
"""Families whose later tokens have marks: of the suffix of a prefix model, of images that they attend to."""


@pytest.mark.slow
@pytest.mark.parametrize("shows", ["nothing", "an image", "two images"])
def test_a_second_turn_equals_the_whole_read_again(adapter: TransformersAdapter, family: Family, shows: str) -> None:
    if shows != "nothing" and not family.image:
        pytest.skip("a text model")
    model = make_student(adapter, "every second").model
    model.generation_config.suppress_tokens = [*range(TURN_END + 1 + len(family.tokens))]
    first = [] if shows == "nothing" else [Image.new("RGB", (32, 32), "red")]
    second = [Image.new("RGB", (32, 32), "blue")] if shows == "two images" else []
    # The one token of the first answer is read with the second question, so that its text need not give it again.
    speaker, whole = (Speaker(model, adapter, Sampling(max_new_tokens=number)) for number in (1, 6))
    speaker.answer("the red circle", first)
    speaker.sampling, whole.history = whole.sampling, History(speaker.history.turns, speaker.history.images)
    expected = whole.answer("how many green triangles", second)
    answer = speaker.answer("how many green triangles", second)
    assert speaker.history.read_S is not None
    assert whole.history.read_S is not None
    assert speaker.history.read_S.tolist() == whole.history.read_S.tolist()
    assert (answer.num_read + answer.num_kept, expected.num_kept) == (expected.num_read, 0)
    if shows != "two images":
        assert bool(answer.read_again) == (family.model_type in READ_AGAIN[shows])
