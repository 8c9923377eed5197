"""The shapes of the named things that a recipe puts together. Nothing here imports torch at run time."""

from __future__ import annotations

from linearize.protocols.batch import TOKEN_IMAGE, TOKEN_PAD, TOKEN_TEXT, Batch
from linearize.protocols.benchmark import Benchmark
from linearize.protocols.conversation import IMAGE_MARK, Conversation, Turn
from linearize.protocols.data import (
    BadRecord,
    DataSource,
    FitsTeacher,
    LeavesOut,
    Mixes,
    SharesAccount,
    ShuffledSource,
    sources_in,
)
from linearize.protocols.evaluator import Answer, AnsweredTask, EvaluatedStudent, Evaluator, Section
from linearize.protocols.format import CheckpointFormat
from linearize.protocols.layout import Layout
from linearize.protocols.mixer import (
    AveragingMixer,
    BackedMixer,
    BranchedMixer,
    Mixer,
    RemarkingMixer,
    RepeatingMixer,
    SeedStyle,
    State,
)
from linearize.protocols.schedule import Schedule
from linearize.protocols.seeder import Seeder, SeedReport
from linearize.protocols.site import AttentionSite, AttentionWeights, SiteNorm
from linearize.protocols.teacher import (
    MakesRandomModels,
    PacksSamples,
    PublishedCheckpoint,
    TeacherAdapter,
    TellsCaveats,
    TellsModalities,
)
from linearize.protocols.text import HoldsText, ReadsText, Sample, TellsContents, TextRow, sample_tokens

__all__ = [
    "IMAGE_MARK",
    "TOKEN_IMAGE",
    "TOKEN_PAD",
    "TOKEN_TEXT",
    "Answer",
    "AnsweredTask",
    "AttentionSite",
    "AttentionWeights",
    "AveragingMixer",
    "BackedMixer",
    "BadRecord",
    "Batch",
    "Benchmark",
    "BranchedMixer",
    "CheckpointFormat",
    "Conversation",
    "DataSource",
    "EvaluatedStudent",
    "Evaluator",
    "FitsTeacher",
    "HoldsText",
    "Layout",
    "LeavesOut",
    "MakesRandomModels",
    "Mixer",
    "Mixes",
    "PacksSamples",
    "PublishedCheckpoint",
    "ReadsText",
    "RemarkingMixer",
    "RepeatingMixer",
    "Sample",
    "Schedule",
    "Section",
    "SeedReport",
    "SeedStyle",
    "Seeder",
    "SharesAccount",
    "ShuffledSource",
    "SiteNorm",
    "State",
    "TeacherAdapter",
    "TellsCaveats",
    "TellsContents",
    "TellsModalities",
    "TextRow",
    "Turn",
    "sample_tokens",
    "sources_in",
]
