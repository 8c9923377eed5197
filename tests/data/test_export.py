from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from linearize_glance.config import GlanceConfig
from linearize_glance.source import GlanceSource
from PIL import Image

from linearize.data.export import export_llava
from linearize.data.llava_json import LlavaJsonConfig, LlavaJsonSource
from linearize.data.stream import SampleStream
from linearize.errors import DataError
from linearize.protocols import DataSource
from linearize.protocols.conversation import Conversation, Turn


def picture(seed: int) -> Image.Image:
    """Noise of a size of its own, so that nothing lossy could give it back."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (3 + seed % 5, 4 + seed % 3, 3), dtype=np.uint8))


class Noise:
    """Conversations with no, one and several images, of one and several turns, with awkward texts."""

    size: int | None = None

    def __getitem__(self, index: int) -> Conversation:
        first = "<image>" * (index % 3) + f'\n  Line {index}?\n\t"quoted" \\ é漢🙂\u2028\r '
        turns = (Turn(first, " one\n"), Turn(f"And{'<image>' * (index % 2)}?", "two"))[: 1 + index % 4]
        num_images = sum(turn.question.count("<image>") for turn in turns)
        images = tuple(picture(10 * index + number) for number in range(num_images))
        return Conversation(turns, images, id=f"noise-{index}", task="noise")


class Changed:
    """A source with some conversations replaced or failing."""

    size: int | None = None

    def __init__(self, base: DataSource, changes: dict[int, Callable[[Conversation], Conversation]]) -> None:
        self.base, self.changes = base, changes

    def __getitem__(self, index: int) -> Conversation:
        conversation = self.base[index]
        return self.changes[index](conversation) if index in self.changes else conversation


def read_back(folder: Path) -> LlavaJsonSource:
    return LlavaJsonSource(LlavaJsonConfig(path=folder / "records.jsonl", shuffle=False, max_bad=0))


def assert_same(found: Conversation, due: Conversation) -> None:
    assert (found.turns, found.id, found.task) == (due.turns, due.id, due.task)
    assert [image.mode for image in found.images] == ["RGB"] * len(due.images)
    assert [image.size for image in found.images] == [image.size for image in due.images]
    assert [image.tobytes() for image in found.images] == [image.tobytes() for image in due.images]


def fail(conversation: Conversation) -> Conversation:
    raise KeyboardInterrupt


@pytest.mark.parametrize("start", [0, 5])
def test_what_is_read_back_is_what_was_drawn(tmp_path: Path, start: int) -> None:
    report = export_llava(Noise(), 12, tmp_path / "out", start=start)
    files = read_back(tmp_path / "out")
    assert (report.records, report.num_conversations) == (tmp_path / "out" / "records.jsonl", len(files))
    assert report.num_images == len(list((tmp_path / "out" / "images").iterdir()))
    for index in range(12):
        assert_same(files[index], Noise()[start + index])


def test_drawn_tasks_come_back_from_files_in_the_order_of_the_run(tmp_path: Path) -> None:
    drawn = GlanceSource(GlanceConfig(seed=3))
    export_llava(drawn, 40, tmp_path / "out")
    files = read_back(tmp_path / "out")
    conversations = [files[index] for index in range(40)]
    assert {len(conversation.images) > 1 for conversation in conversations} == {True, False}
    assert {len(conversation.turns) > 1 for conversation in conversations} == {True, False}
    assert any(not conversation.images for conversation in conversations)
    on_the_fly, from_files = (
        SampleStream(source, seed=0, shuffle=shuffle) for source, shuffle in ((drawn, True), (files, False))
    )
    for counter in range(40):
        assert_same(from_files[counter], on_the_fly[counter])


def test_images_of_other_modes_come_back_as_their_rgb_conversion(tmp_path: Path) -> None:
    modes = ["1", "L", "P", "RGBA", "CMYK"]
    turn = (Turn("<image>" * len(modes), "x"),)
    images = tuple(picture(7).convert(mode) for mode in modes)
    source = Changed(Noise(), {0: lambda _: Conversation(turn, images, "modes")})
    export_llava(source, 1, tmp_path / "out")
    due = Conversation(turn, tuple(image.convert("RGB") for image in images), "modes")
    assert_same(read_back(tmp_path / "out")[0], due)


def test_the_same_export_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_llava(Noise(), 6, tmp_path / name)
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*")) if path.is_file()]
    assert len(files) > 3
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    record = json.loads((tmp_path / "one" / "records.jsonl").read_text().split("\n")[2])
    assert record["image"] == ["images/00000002-0.png", "images/00000002-1.png"]


def test_the_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_llava(Changed(Noise(), {7: fail}), 9, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_llava(Noise(), 9, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_goes_on_with_the_images_that_are_there_and_mends_torn_ones(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_llava(Changed(Noise(), {7: fail}), 9, tmp_path / "out")
    images = tmp_path / "out.partial" / "images"
    kept, torn = images / "00000002-0.png", images / "00000004-0.png"
    torn.write_bytes(torn.read_bytes()[:60])
    before = kept.stat().st_mtime_ns
    export_llava(Noise(), 9, tmp_path / "out")
    assert (tmp_path / "out" / "images" / kept.name).stat().st_mtime_ns == before
    for index in range(9):
        assert_same(read_back(tmp_path / "out")[index], Noise()[index])


def test_a_folder_of_others_with_the_name_of_an_unfinished_export_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "images").mkdir(parents=True)
    (tmp_path / "out.partial" / "images" / "holiday.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"out\.partial .* holds files of something else"):
        export_llava(Noise(), 5, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out.partial", "images", "holiday.png"]


def test_what_another_attempt_left_does_not_reach_the_export(tmp_path: Path) -> None:
    def darken(conversation: Conversation) -> Conversation:
        return replace(
            conversation, images=tuple(image.point(lambda value: value // 2) for image in conversation.images)
        )

    other = Changed(Noise(), {**dict.fromkeys(range(12), darken), 12: fail})
    with pytest.raises(KeyboardInterrupt):
        export_llava(other, 20, tmp_path / "out")
    export_llava(Noise(), 5, tmp_path / "out")
    export_llava(Noise(), 5, tmp_path / "fresh")
    names = [sorted(path.name for path in (tmp_path / name / "images").iterdir()) for name in ("out", "fresh")]
    assert names[0] == names[1]
    for index in range(5):
        assert_same(read_back(tmp_path / "out")[index], Noise()[index])


def test_progress_counts_conversations(tmp_path: Path) -> None:
    seen: list[int] = []
    export_llava(Noise(), 4, tmp_path / "a" / "b" / "out", progress=seen.append)
    assert seen == [1, 2, 3, 4]


def test_a_folder_that_holds_something_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_llava(Noise(), 1, tmp_path / "out")
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    with pytest.raises(DataError, match="exists and is not an empty folder; name another, or remove it"):
        export_llava(Noise(), 2, tmp_path / "out")
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (Conversation((Turn("Why?", ""),)), r"conversation 1 \(''\) cannot be stored: empty text: answer 1"),
        (Conversation((Turn("<image>?", "x"),), id="a"), r"'a'\) cannot be stored: wrong number of <image> marks"),
        (
            Conversation((Turn("What?", "x"),), (picture(0),)),
            "would not come back as it is: its one image has no <image>",
        ),
        (Conversation((), ()), "no turns"),
    ],
)
def test_a_conversation_that_would_not_come_back_is_refused(
    tmp_path: Path, conversation: Conversation, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        export_llava(Changed(Noise(), {1: lambda _: conversation}), 3, tmp_path / "out")


def test_a_source_that_is_too_short_and_senseless_counts_are_refused(tmp_path: Path) -> None:
    source = Noise()
    source.size = 4
    with pytest.raises(DataError, match="conversations 2 to 6 were asked for, the source has 0 to 3"):
        export_llava(source, 5, tmp_path / "out", start=2)
    with pytest.raises(DataError, match="0 conversations from number 0 on asked for; expected at least 1"):
        export_llava(source, 0, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the export to .*file/out stopped: .*Not a directory"):
        export_llava(Noise(), 1, tmp_path / "file" / "out")
