"""The options of the glance data source and benchmark."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from linearize.plugin.config import Config
from linearize_glance.drawing import TASKS, task_named
from linearize_glance.streams import Split
from linearize_glance.task import MAX_TURNS

Range = Annotated[tuple[int, int], Field(description="lowest and highest, both included")]


def _known(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in TASKS:
            raise ValueError(f"glance has no task '{name}'; it has {', '.join(TASKS)}")


class GlanceConfig(Config):
    """An endless mix of drawn conversations."""

    tasks: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default={name: 1.0 for name in TASKS},
        min_length=1,
        description="task -> weight; weights are relative, a task that is not named is not drawn",
    )
    split: Split = Field(default="distil", description="random stream to draw from; each split has its own")
    seed: int = Field(default=0, description="another seed gives other conversations")
    size: int | None = Field(default=None, ge=1, description="number of conversations; none: endless")
    turns: Range = Field(default=(1, MAX_TURNS), description="fewest and most questions about the same pictures")
    difficulty: dict[str, Range] = Field(
        default={},
        description="task -> lowest and highest level (objects, characters, pairs, ...); default: the split's",
    )

    @model_validator(mode="after")
    def _ranges_are_possible(self) -> Self:
        _known((*self.tasks, *self.difficulty))
        if not 1 <= self.turns[0] <= self.turns[1]:
            raise ValueError(f"turns {list(self.turns)} is not a range of at least 1; write for example [1, 4]")
        for name, (low, high) in self.difficulty.items():
            if low > high:
                raise ValueError(f"difficulty of '{name}' runs from {low} to {high}; the lower number comes first")
            task_named(name).check_level(low)
            task_named(name).check_level(high)
        return self


class GlanceBenchmarkConfig(Config):
    """A fixed set of drawn questions."""

    tasks: tuple[str, ...] = Field(default=tuple(TASKS), min_length=1, description="which tasks to ask")
    questions: int = Field(default=200, ge=1, description="questions per task, and per level of difficulty")
    split: Split = Field(
        default="evaluation", description="validation to choose between runs, evaluation for reported numbers"
    )
    seed: int = Field(default=0, description="another seed gives other questions")

    @field_validator("tasks")
    @classmethod
    def _tasks_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _known(names)
        if len(set(names)) != len(names):
            raise ValueError(f"tasks {list(names)} name one task twice; name each once")
        return names

    @field_validator("split")
    @classmethod
    def _split_is_held_out(cls, split: Split) -> Split:
        if split not in ("validation", "evaluation"):
            raise ValueError(f"split '{split}' is trained on; a benchmark takes 'validation' or 'evaluation'")
        return split
