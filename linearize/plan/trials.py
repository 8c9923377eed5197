"""What a recipe's data and questions give when they are asked once, before anything is run on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from linearize.errors import DataError
from linearize.protocols import Conversation, HoldsText, ReadsText, sources_in

if TYPE_CHECKING:
    from linearize.protocols import Benchmark, DataSource, TeacherAdapter
    from linearize.recipe.load import Draft


def try_data(draft: Draft, source: DataSource | None, adapter: TeacherAdapter | None) -> None:
    """Asks for the first conversation of the data; what is wrong with it is a problem of the recipe."""
    if source is None:
        return
    with draft.telling("data"):
        for one in sources_in(source):
            _try_source(one, adapter)


def _try_source(source: DataSource, adapter: TeacherAdapter | None) -> None:
    if isinstance(source, HoldsText):
        _try_text(source, adapter)
        return
    size = source.size
    if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
        raise TypeError(f"`size` has to be a number of conversations, or None without end; got {size!r}")
    if size is not None and size < 1:
        raise ValueError("there is no conversation")
    _require_conversation(source[0], "conversation 0", adapter)


def _try_text(source: HoldsText, adapter: TeacherAdapter | None) -> None:
    """The first row alone: how many there are is known once the teacher's tokenizer has read all documents."""
    if adapter is None:
        return
    if not isinstance(adapter, ReadsText):
        raise DataError(
            "it holds running text, which this teacher's adapter does not make tokens of; choose conversations, or "
            "give the adapter the methods of linearize.protocols.ReadsText"
        )
    source.read_as(adapter)
    source[0]  # type: ignore[index]


def try_benchmark(draft: Draft, path: str, benchmark: Benchmark | None, adapter: TeacherAdapter | None) -> None:
    """Asks for the first question of each task, and of each dial that the recipe turns."""
    if benchmark is None:
        return
    with draft.telling(path):
        turns_dials = draft.recipe is not None and draft.recipe.evaluate.dial_questions > 0
        for task in benchmark.tasks:
            _try_questions(benchmark, task, None, adapter)
        for task, positions in benchmark.dials.items():
            for position in positions if turns_dials else ():
                _try_questions(benchmark, task, position, adapter)


def _try_questions(benchmark: Benchmark, task: str, position: int | None, adapter: TeacherAdapter | None) -> None:
    where = f"task '{task}'" if position is None else f"task '{task}' at difficulty {position}"
    first = next(iter(benchmark.questions(task, position)), None)
    if first is None:
        raise ValueError(f"{where} has no question")
    _require_conversation(first, f"the first question of {where}", adapter)
    if len(first.turns) != 1:
        raise ValueError(f"the first question of {where} has {len(first.turns)} turns; expected one")


def _require_conversation(found: object, what: str, adapter: TeacherAdapter | None) -> None:
    if not isinstance(found, Conversation):
        raise TypeError(f"{what} has to be a linearize Conversation; got a {type(found).__name__}")
    if found.images and not getattr(adapter, "reads_images", True):
        raise DataError(f"{what} has an image, and the teacher reads text alone; choose texts, or a teacher of images")
