"""Mixtures: the source of a sample and its place there follow from its number alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from linearize.data.mix import BLOCK, MixConfig, MixSource
from linearize.errors import RecipeError
from linearize.plan.check import check_recipe
from linearize.plugin.discovery import Plugins
from linearize.protocols import Conversation, TextRow


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Any]:
    """Three records with pictures, one of them too long, and a corpus of text."""
    records = [
        {"id": name, "image": "a.png", "conversations": [{"from": "human", "value": "how many?"},
                                                         {"from": "gpt", "value": answer}]}
        for name, answer in (("x", "two"), ("y", "two " * 300), ("z", "one"))
    ]  # fmt: skip
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "corpus.txt").write_text(" ".join(["red", "blue", "left"] * 40))
    return {
        "type": "mix",
        "weights": {"pictures": 3},
        "sources": {
            "pictures": {"type": "llava_json", "path": str(tmp_path / "records.jsonl"), "max_tokens": 200},
            "prose": {"type": "text", "path": str(tmp_path / "corpus.txt"), "tokens": 16},
        },
    }


def mix(**options: Any) -> MixSource:
    return MixSource(MixConfig(**{name: value for name, value in options.items() if name != "type"}))


def recipe(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": {"name": "tiny"},
        "teacher": {"type": "hovle", "checkpoint": "embedded"},
        "student": {"mixer": {"type": "mamba2"}},
        "data": data,
        "stages": [{
            "name": "align", "objective": {"type": "layer_mse"}, "train": ["new"], "steps": 5, "batch_size": 8,
            "lr": 1e-3,
        }],
    }  # fmt: skip


def test_every_block_has_each_source_by_its_share_and_counts_on(tables: dict[str, Any]) -> None:
    source = mix(**tables)
    places = [source.place(index) for index in range(2 * BLOCK)]
    for start in (0, BLOCK):
        assert Counter(name for name, _ in places[start : start + BLOCK]) == {"pictures": 768, "prose": 256}
    for name in ("pictures", "prose"):
        counters = [counter for of, counter in places if of == name]
        assert counters == list(range(len(counters)))
    assert [name for name, _ in places[:BLOCK]] != [name for name, _ in places[BLOCK:]]
    # Another instance, asked out of order.
    again = mix(**tables)
    assert [again.place(index) for index in (1500, 3, 700)] == [places[index] for index in (1500, 3, 700)]
    assert [mix(**tables, seed=1).place(index) for index in range(50)] != places[:50]


def test_shares_are_rounded_so_that_every_place_is_taken(tables: dict[str, Any]) -> None:
    tables["weights"] = {"pictures": 1, "prose": 2}
    assert mix(**tables)._places == {"pictures": 341, "prose": 683}


def test_a_checked_mixture_gives_the_samples_of_its_sources_and_their_account(tables: dict[str, Any]) -> None:
    checked = check_recipe(recipe(tables), [], Plugins.discover())
    kinds = Counter(type(checked.source[index]) for index in range(64))
    assert kinds[Conversation] > kinds[TextRow] > 0
    names = {one.id for index in range(64) if isinstance(one := checked.source[index], Conversation)}
    assert names == {"x", "z"}
    [bad] = checked.source.bad_records()  # type: ignore[attr-defined]
    assert (bad.line, bad.fault) == (2, "too long")
    assert bad.source.startswith("pictures: ")
    told = checked.with_tokens().plan
    assert told.data == (
        "75.0 % pictures (3 conversations); 25.0 % prose (1 document, 122 tokens in 7 rows of 16); "
        "the stages take 40 samples"
    )
    assert told.stages[0].tokens
    assert checked.source.outline(0) is not None  # type: ignore[attr-defined]


def test_what_one_source_leaves_out_of_a_file_another_that_reads_it_keeps(tables: dict[str, Any]) -> None:
    """In a worker's account too, else the next stage would draw other samples than without workers."""
    pictures = tables["sources"]["pictures"]
    tables = {"type": "mix", "sources": {"short": pictures, "any": {**pictures, "max_tokens": 16384}}}
    worker, run = (check_recipe(recipe(tables), [], Plugins.discover()).source for _ in range(2))
    assert isinstance(worker, MixSource)
    assert isinstance(run, MixSource)
    drawn = [worker[index] for index in range(64)]
    assert {one.id for one in drawn if isinstance(one, Conversation)} == {"x", "y", "z"}
    run.take_over(worker.bad_records())
    assert run.bad_records() == worker.bad_records()
    assert [run[index] for index in range(64)] == drawn


def test_what_is_wrong_with_a_source_is_told_by_its_path(tables: dict[str, Any]) -> None:
    tables["sources"]["prose"]["tokens"] = 1
    tables["sources"]["pictures"]["pth"] = "x"
    with pytest.raises(RecipeError) as raised:
        check_recipe(recipe(tables), [], Plugins.discover())
    assert "data.sources.prose.tokens: " in str(raised.value)
    assert "data.sources.pictures.pth: unknown key" in str(raised.value)


@pytest.mark.parametrize(
    ("weights", "says"),
    [({"poems": 1}, "weights are given for 'poems'"), ({"prose": 0.0001}, "'prose' would be less than one sample")],
)
def test_weights_that_give_nothing_are_refused(tables: dict[str, Any], weights: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mix(**tables | {"weights": weights})


def test_a_resolved_mixture_reads_back_as_itself(tables: dict[str, Any]) -> None:
    loaded = check_recipe(recipe(tables), [], Plugins.discover()).recipe
    again = check_recipe(loaded.tables(), [], Plugins.discover()).recipe
    assert again.tables() == loaded.tables()
    assert loaded.tables()["data"]["sources"]["prose"]["type"] == "text"
