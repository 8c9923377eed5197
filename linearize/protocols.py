"""The shapes of the named things that a recipe puts together. Nothing here imports torch at run time.

Letters: B batch, T tokens, D model width, N query heads, M key-value heads, K and V width of one key and value head.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from linearize.data.conversation import Conversation

TOKEN_PAD, TOKEN_TEXT, TOKEN_IMAGE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteNorm:
    """The norm of a site's queries, and the like one of its keys.

    Attributes:
        kind: as in :class:`AttentionWeights`.
        over: "head": each head by itself with one weight [K] for all; "heads": each head by itself with its own weight
            [N, K]; "all": all heads together, [N*K].
        has_bias: whether something is added to what is normalised and multiplied.
        eps: added to the mean square, or to the variance.
    """

    kind: Literal["rms", "layer"] = "rms"
    over: Literal["head", "heads", "all"] = "head"
    has_bias: bool = False
    eps: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSite:
    """One softmax attention of the teacher's decoder, known from the configuration alone.

    Attributes:
        index: position in execution order through the whole decoder, from 0, whatever towers it has.
        path: dotted path of the attention module inside the model.
        tower: name of the stack that it belongs to, such as "embedding" or "language".
        layer: index inside its tower.
        num_layers: how many layers its tower has; 0 where the adapter does not say.
        cache_index: its slot in transformers' Cache.
        key_dim: K, width of one query or key head.
        value_dim: V, width of one value head.
        output_projection: attribute of the attention module that holds the nn.Linear from N*V to D.
        cache_argument: keyword under which the decoder passes its cache to the attention.
        has_rope: whether the attention turns queries and keys; where not, mixers get no position.
        rope_style: which numbers of a head turn together: "half": i and i + width/2; "interleaved": 2i and 2i + 1.
        qkv_bias: whether any of the q, k and v projections has a bias.
        qk_norm: the norm of queries and keys; None without one.
        v_norm_eps: values are divided by the root of this plus their mean square, each head by itself; None: they are
            not.
        scale: factor on q·k before the softmax; None: 1/sqrt(K).
        window: sliding window in tokens, the query's own included; None for full causal attention.
        softcap: scores s become softcap * tanh(s / softcap); None: they stay.
    """

    index: int
    path: str
    tower: str
    layer: int
    cache_index: int
    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    key_dim: int
    value_dim: int
    output_projection: str = "o_proj"
    num_layers: int = 0
    cache_argument: str = "past_key_values"
    has_rope: bool = True
    rope_style: Literal["half", "interleaved"] = "half"
    qkv_bias: bool = False
    qk_norm: SiteNorm | None = None
    v_norm_eps: float | None = None
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """The weights of one site as separate projections, however the teacher stores them.

    What the site says too (biases, norms, scale, window, softcap, rotary embedding) is the same here.

    Attributes:
        q: [N*K, D]. k: [M*K, D]. v: [M*V, D]. o: [D, N*V]. Rows are head-major; query head j reads key-value head
            j // (N//M).
        q_norm, k_norm: what multiplies a normalised query and key: [K] or [N, K] over each head by itself, [N*K] over
            all heads together (k: M for N). None without a norm.
        q_norm_bias, k_norm_bias: what is added after that; in the same shapes.
        norm: the kind of these norms; norm_eps: what they add to the mean square, or to the variance.
        v_norm_eps: values are divided by the root of this plus their mean square, each head by itself; None: they are
            not.
        gate, gate_bias: [N*V, D] and [N*V]: the output is multiplied by sigmoid(gate · x + gate_bias) before the output
            projection. None: it is not.
        scale: factor on q·k before the softmax.
        rope_theta: base of the rotary embedding; None without one.
        rope_style: which numbers of a head turn together: "half": i and i + width/2; "interleaved": 2i and 2i + 1.
        window: sliding window in tokens, the query's own included; None for full causal attention.
        softcap: scores s become softcap * tanh(s / softcap); None: they stay.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    q_norm_bias: Tensor | None = None
    k_norm_bias: Tensor | None = None
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    v_norm_eps: float | None = None
    scale: float
    rope_theta: float | None = None
    rope_style: Literal["half", "interleaved"] = "half"
    window: int | None = None
    softcap: float | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that is there, by field name: what a seeder has to account for."""
        named = {name: getattr(self, name) for name in
                 ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias",
                  "q_norm", "k_norm", "q_norm_bias", "k_norm_bias", "gate", "gate_bias")}  # fmt: skip
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(slots=True)
class Batch:
    """Model inputs and what each token is.

    Attributes:
        inputs: keyword arguments of the model: input_ids [B, T], attention_mask [B, T], and whatever the images need.
        loss_mask_BT: bool, True at answer tokens, the end-of-turn token that the model must emit included.
        token_kind_BT: uint8, TOKEN_PAD, TOKEN_TEXT or TOKEN_IMAGE.
    """

    inputs: dict[str, Tensor]
    loss_mask_BT: Tensor
    token_kind_BT: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()},
            self.loss_mask_BT.to(device, non_blocking=True),
            self.token_kind_BT.to(device, non_blocking=True),
        )


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


class TellsCaveats(Protocol):
    """What a teacher adapter offers besides, when a recurrence cannot do all that its model's attention does."""

    def caveats(self) -> Sequence[str]:
        """What a student will not see or do as its teacher does, one sentence each; reads the configuration alone."""
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


State = dict[str, "Tensor"]
SeedStyle = Literal["mimic", "scratch"]


class Mixer(Protocol):
    """A linear-time token mixer; in truth an nn.Module, whose constructor takes (config, site).

    One that has k or v once for each query head, where the teacher shares them, names those modules in an attribute
    ``repeated``, {"k_proj", "v_proj"}: a seeder then gives them each of the teacher's heads several times. Without it
    shapes have to fit.

    In training mode, which stages turn on, it may draw from torch's global generator, as dropout does: that is seeded
    anew at every optimizer step, so that a run which was stopped ends as one that was not.
    """

    projections: Mapping[str, str | Sequence[str]]
    """Which modules can take what the teacher has: {"q": "q_proj", "k": "k_proj", "v": "v_proj"}.

    "q", "k" and "v" lead to an nn.Linear, by its dotted path; several paths: each takes a copy. "q_norm" and "k_norm"
    lead to a module whose ``weight`` and ``bias``, if it has one, have the shapes of :class:`AttentionWeights`. All
    parameters of these modules have the role "qkv".
    """

    def roles(self) -> Mapping[str, frozenset[str]]:
        """Every parameter name with its roles: just one of "qkv" and "new", and finer ones ("conv", "decay", ...)."""
        ...

    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        """Sets every "new" parameter so that the mixer mimics attention as it can, or from scratch (q, k, v too)."""
        ...

    def empty_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """The state before the first token, which ``forward`` takes as it takes None.

        Its names, shapes (batch first) and dtypes are those of every later state, so that memory can be allocated and
        counted without a forward; device "meta" allocates none. The device need not be that of the parameters.

        Args:
            dtype: that of ``x_BTD``; tensors that are kept more precisely have their own.
        """
        ...

    def forward(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None = None,
        position: tuple[Tensor, Tensor] | None = None,
        segments_BT: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Per-head output [B, T, N, V] before the output projection, and the state after the last token.

        T may be 0: the output is empty and the state is the one given, or ``empty_state``.

        Args:
            valid_BT: bool; a False token writes nothing and does not decay. None: all are valid.
            position: cos and sin as transformers passes them; None where the site has no rotary embedding.
            segments_BT: int; where it changes, the state starts anew (packed documents).
            state: what an earlier call returned; its size does not depend on T.
        """
        ...


class BranchedMixer(Protocol):
    """What a mixer offers besides, when its output is a sum of branches: evaluation then tells what each one does."""

    branches: Sequence[str]
    """Their names."""

    left_out: frozenset[str]
    """Branches that add zeros now; none unless someone looks. The states that a call gives have the same shapes."""


class AveragingMixer(Protocol):
    """What a mixer offers besides, when its output is an average of values with weights that are never negative.

    Something else may then see the last tokens in its place, and both be divided by the sum of all weights.
    """

    def start_after(self, tokens: int) -> None:
        """From now on leaves each token's last ``tokens``, itself included, to something else.

        Raises:
            PluginError: with its options the output is no such average; names them.
        """
        ...

    def sums(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None,
        position: tuple[Tensor, Tensor] | None,
        segments_BT: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, State]:
        """As ``forward``; [B, T, N, V + 1], at least fp32: the weighted sum of values, then that of weights.

        T is at least 1.
        """
        ...


@dataclass(slots=True)
class SeedReport:
    """The full account of one site's seeding.

    Attributes:
        parameters: every mixer parameter -> "copied" (once, or once for each query head), "derived" or "fresh".
        teacher: every teacher tensor -> "used", "kept" (shared, frozen) or "dropped".
    """

    site: int
    parameters: dict[str, str] = field(default_factory=dict)
    teacher: dict[str, str] = field(default_factory=dict)


class Seeder(Protocol):
    """Gives a mixer its starting point."""

    def seed(
        self, weights: AttentionWeights, mixer: Any, *, site: AttentionSite, generator: torch.Generator
    ) -> SeedReport:
        """Sets every parameter of ``mixer`` and accounts for each of them and for each teacher tensor."""
        ...


class Layout(Protocol):
    """Which sites become linear."""

    def linear_sites(self, sites: Sequence[AttentionSite]) -> Sequence[int]:
        """Indices of the sites that run linearly, ascending, each once; the others keep their attention.

        Args:
            sites: all attentions of the teacher's decoder, in execution order.

        Raises:
            ValueError: a site is named that does not exist; the text names it and the sites there are.
        """
        ...


class DataSource(Protocol):
    """Conversations by number: the same index always gives the same conversation."""

    size: int | None
    """How many there are; None when they are drawn without end."""

    def __getitem__(self, index: int) -> Conversation: ...


class Benchmark(Protocol):
    """Questions with answers, in tasks, that training never sees."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks, in the order of the results."""
        ...

    @property
    def dials(self) -> Mapping[str, Sequence[int]]:
        """Tasks with a difficulty dial -> its positions, easy first."""
        ...

    def questions(self, task: str, difficulty: int | None = None) -> Sequence[Conversation]:
        """Single-turn conversations; the turn's answer is the right one."""
        ...

    def is_correct(self, question: Conversation, answer: str) -> bool:
        """Whether ``answer``, as the model wrote it, is right."""
        ...


class CheckpointFormat(Protocol):
    """A student format that another project published."""

    def read(self, folder: Path) -> Any:
        """The student, as a model that linearize would have saved."""
        ...

    def write(self, model: Any, folder: Path) -> None:
        """Writes ``model`` so that the other project's code could read it."""
        ...
