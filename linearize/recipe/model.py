"""The typed tables of a recipe. Tables with a ``type`` key keep their other keys for the component's own model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from linearize.plugin.components import COMPONENT_KEY, named
from linearize.plugin.config import Config
from linearize.plugin.specs import (
    BenchmarkSpec,
    DataSpec,
    EvaluatorSpec,
    LayoutSpec,
    MixerSpec,
    ObjectiveSpec,
    ScheduleSpec,
    SeederSpec,
    Spec,
    TeacherSpec,
)
from linearize.recipe.site_ranges import SiteIndices, site_ranges


class Component(BaseModel):
    """A table with ``type``; all its other keys are checked by the options model of that component."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = Field(description="name of the component, as `linearize plugins` lists it")

    def options(self) -> dict[str, Any]:
        """The keys beside ``type``."""
        return dict(self.model_extra or {})


def _table_of(kind: type[Spec]) -> WithJsonSchema:
    return WithJsonSchema({COMPONENT_KEY: kind.kind})


class RunTable(Config):
    """Where the run lives and how it computes."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run folder is runs/<name> of the current directory"
    )
    seed: int = Field(default=0, ge=0, description="decides fresh parameters and which samples are drawn")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: the GPU when there is one")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of frozen weights and of matrix products; trained parameters and recurrent states stay float32",
    )
    checkpoint_every: int = Field(default=100, gt=0, description="optimizer steps between two checkpoints")
    log_every: int = Field(default=10, gt=0, description="optimizer steps between two lines of metrics.jsonl")
    workers: int = Field(
        default=0,
        ge=0,
        description="processes that draw samples and make batches of them beside the one that trains; 0: a thread of "
        "it does. Results are the same, so it may change while a run goes on",
    )
    num_threads: int | None = Field(default=None, gt=0, description="CPU threads; absent: as many as torch chooses")


class SiteMixerTable(Config):
    """Sites whose mixer is not student.mixer as it stands."""

    sites: SiteIndices = Field(
        min_length=1, description='the sites, from 0 through the whole decoder: [0, 1, 5] or "0-1, 5"'
    )
    mixer: Annotated[dict[str, Any], _table_of(MixerSpec)] = Field(
        description="keys laid over student.mixer at these sites; another `type` takes none of its options"
    )


class StudentTable(Config):
    """What takes the place of the teacher's attention."""

    mixer: Annotated[Component, _table_of(MixerSpec)]
    sites: tuple[SiteMixerTable, ...] = Field(
        default=(), description="sites with another mixer, or with other options of it; a site in one entry at most"
    )
    layout: Annotated[Component, _table_of(LayoutSpec)] = named("all")
    seeder: Annotated[Component, _table_of(SeederSpec)] = named("mimic")

    @field_validator("sites")
    @classmethod
    def _entries_are_disjoint(cls, entries: tuple[SiteMixerTable, ...]) -> tuple[SiteMixerTable, ...]:
        asked = [index for entry in entries for index in entry.sites]
        repeated = sorted({index for index in asked if asked.count(index) > 1})
        if repeated:
            raise ValueError(f"sites {site_ranges(repeated)} are listed more than once; expected each once at most")
        return entries


class LrSchedule(Config):
    """Warm-up, plateau, decay (WSD). With decay = 1 - warmup it is a linear decay, with decay = 0 a constant."""

    warmup: float = Field(
        default=0.1, ge=0, le=1, description="fraction of planned_steps with linearly rising learning rate"
    )
    decay: float = Field(
        default=0.1, ge=0, le=1, description="fraction of planned_steps with linearly falling learning rate"
    )
    final: float = Field(default=0.0, ge=0, le=1, description="learning rate at the end, as a fraction of the peak")
    planned_steps: int | None = Field(
        default=None, gt=0, description="optimizer steps that the fractions refer to; absent: the stage's steps"
    )

    @model_validator(mode="after")
    def _fractions_fit(self) -> LrSchedule:
        if self.warmup + self.decay > 1 + 1e-9:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} add up to more than 1")
        return self


class Optimizer(Config):
    """How parameters are updated."""

    type: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: torch.optim.Muon for matrices (https://kellerjordan.github.io/posts/muon/), "
        "AdamW for the rest",
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's moment decays")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    no_decay: Literal["vectors", "biases"] = Field(
        default="vectors",
        description="what is spared weight decay: parameters with fewer than two dimensions, or those with 'bias' in "
        "their name and the decay constants",
    )
    muon_lr: float = Field(default=0.01, gt=0, description="peak learning rate of Muon's matrices; lr is then AdamW's")


class Stage(Config):
    """One stage of distillation."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="names the stage's folder; overlays match stages by it"
    )
    objective: Annotated[Component, _table_of(ObjectiveSpec)]
    train: tuple[str, ...] = Field(
        min_length=1, description="parameter roles that are trained: new, qkv, conv, decay, gate, ..."
    )
    freeze: tuple[str, ...] = Field(default=(), description="parameter roles taken out of `train` again")
    sites: Literal["layout", "all"] = Field(
        default="layout",
        description="layout: the sites that end up linear; all: every site, kept ones too (as the paper's stages 1, 2)",
    )
    steps: int = Field(ge=0, description="optimizer steps; 0: the stage is left out")
    batch_size: int = Field(default=32, gt=0, description="conversations per optimizer step, over all devices")
    max_tokens: int = Field(
        default=16384,
        gt=0,
        description="padded tokens per forward pass; a larger step is split, its gradient is the same",
    )
    max_padding: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="largest share of a row that may be padding; rows of other lengths form a batch of their own",
    )
    pack: int | None = Field(
        default=None,
        ge=2,
        description="samples share rows of this many tokens, one row a forward pass, and none sees another; a longer "
        "sample has a row to itself. absent: each has a row of its own",
    )
    pad_to_multiple: int | None = Field(
        default=None,
        gt=0,
        description="rows are padded to a multiple of this many tokens, so that kernels and compiled graphs meet few "
        "lengths; absent: to the longest row of the batch",
    )
    lr: float = Field(gt=0, description="peak learning rate")
    lr_schedule: LrSchedule = LrSchedule()
    optimizer: Optimizer = Optimizer()
    clip: float | None = Field(default=1.0, gt=0, description="largest norm of the whole gradient; absent: no clipping")


class EvaluateTable(Config):
    """What the student is asked at the end."""

    benchmarks: tuple[Annotated[Component, _table_of(BenchmarkSpec)], ...] = Field(
        default=(), description="question sets; none: the student is saved without a score"
    )
    evaluators: tuple[Annotated[Component, _table_of(EvaluatorSpec)], ...] = Field(
        default=(named("branches"),),
        description="further looks at the student by these questions, each with its part of the report; they are not "
        "taken without a benchmark",
    )
    batch_size: int = Field(default=64, gt=0, description="questions answered together")
    max_new_tokens: int = Field(default=32, gt=0, description="longest answer in tokens")
    dial_questions: int = Field(
        default=0, ge=0, description="questions per position of a difficulty dial; 0: dials are not turned"
    )
    num_examples: int = Field(default=3, ge=0, description="questions per task that the report shows with both answers")


class Recipe(Config):
    """A whole run. The same file with the same plug-in versions gives the same numbers."""

    run: RunTable
    teacher: Annotated[Component, _table_of(TeacherSpec)]
    student: StudentTable
    data: Annotated[Component, _table_of(DataSpec)]
    schedule: Annotated[Component, _table_of(ScheduleSpec)] | None = Field(
        default=None, description="stages to start from; `stages` of the same name overlay them"
    )
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluate: EvaluateTable = EvaluateTable()

    @field_validator("stages")
    @classmethod
    def _stage_names_differ(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [stage.name for stage in stages]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two stages have the same name: {', '.join(repeated)}")
        return stages
