"""What linearize asks of a teacher family, and what a family may offer besides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from linearize.protocols.batch import Batch
    from linearize.protocols.conversation import Conversation
    from linearize.protocols.site import AttentionSite, AttentionWeights


class TeacherAdapter(Protocol):
    """All that linearize needs to know of one teacher family."""

    def sites(self) -> Sequence[AttentionSite]:
        """Every softmax attention, in execution order; reads the configuration, never a weight."""
        ...

    def load(self, *, dtype: torch.dtype, device: torch.device | str) -> Any:
        """The teacher as a transformers PreTrainedModel in eval mode."""
        ...

    def processor(self) -> Any:
        """The transformers processor (images and text to model inputs), saved beside a student."""
        ...

    def weights(self, model: Any, site: AttentionSite) -> AttentionWeights:
        """The projections of one site; views or copies, never to be written to."""
        ...

    def batch(self, conversations: Sequence[Conversation], *, for_generation: bool = False) -> Batch:
        """Whole conversations right-padded, or for generation left-padded prompts up to the last question."""
        ...

    def num_tokens(self, conversation: Conversation) -> int:
        """How many tokens ``batch`` makes of a conversation, without making its pixels; batches are grouped by it."""
        ...

    def decode(self, ids_BT: Tensor) -> list[str]:
        """The text of generated ids, special tokens stripped."""
        ...


@runtime_checkable
class PacksSamples(Protocol):
    """What a teacher adapter offers besides, when several samples may share a row of its model's input."""

    def packing_obstacle(self) -> str:
        """Why they cannot; "" where they can. From the configuration alone."""
        ...

    def pack(self, batches: Sequence[Batch], width: int) -> Batch:
        """Batches of one sample each as one row of ``width`` tokens, in which no token sees another sample's.

        ``linearize.data.packing.end_to_end`` does it for most models.
        """
        ...


class TellsCaveats(Protocol):
    """What a teacher adapter offers besides, when a recurrence cannot do all that its model's attention does."""

    def caveats(self) -> Sequence[str]:
        """What a student will not see or do as its teacher does, one sentence each; reads the configuration alone."""
        ...


class TellsModalities(Protocol):
    """What a teacher adapter offers besides, when some of its models read no images."""

    reads_images: bool
    """From the configuration alone. False: data and questions with images are refused while a recipe is checked.
    Without this member images are taken to be read."""


class MakesRandomModels(Protocol):
    """What a teacher adapter offers besides, when its models can be measured without their weights."""

    def random_model(self, *, dtype: torch.dtype, device: torch.device | str) -> Any:
        """As ``load``, with random weights; reads the configuration alone."""
        ...


class PublishedCheckpoint(Protocol):
    """What a teacher adapter offers besides, when its family has a published checkpoint layout that students reuse."""

    def published_attention_prefix(self, site: AttentionSite) -> str:
        """The prefix of a site's attention tensors in the published layout."""
        ...

    def from_published(
        self, config: dict[str, Any], state: dict[str, Tensor], *, without_attention: Collection[int] = ()
    ) -> Any:
        """A model from published tensors; the sites in ``without_attention`` have none in ``state``."""
        ...

    def to_published(
        self, model: Any, *, without_attention: Collection[int] = ()
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """config.json and tensors in the published layout, without the attention of the sites named."""
        ...
