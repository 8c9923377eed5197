"""A sliding window and a linear mixer side by side in one site: near tokens exactly, far ones from a state.

    output = a · window(x) + b · linear(x)        "sum", a and b learnt per head, 1 and 0 at the start
    output = (window(x) + linear(x)) / 2          "average", as Liger (arXiv 2503.01496) does
    output = (γ Σ w_s v_s + Σ φ_t·φ_s v_s) / (γ Σ w_s + Σ φ_t·φ_s)        "joint", as LoLCATs (arXiv 2410.10254) does

In the joint output the first sums go over the window, w_s = exp(score_s - largest score); the second ones over all that
lies before it, by a mixer that can tell its sums. γ = sigmoid of what is learnt per head.
Both branches have projections of their own, which start as the teacher's: what finds a neighbour and what finds a fact
in a state need not be the same; LoLCATs has one of each for both.
Letters: B batch, T tokens, D model width, N query heads, V value width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linearize.errors import PluginError
from linearize.mixing.empty import without_tokens
from linearize.protocols import AttentionSite, SeedStyle, State
from linearize_sliding_window.config import SlidingWindowConfig, SwaLinearConfig
from linearize_sliding_window.mixer import SlidingWindowMixer

WINDOW, LINEAR = "window", "linear"


class SwaLinearMixer(nn.Module):
    """Two mixers whose outputs are added; names of parameters and of states begin with the branch's."""

    branches = (WINDOW, LINEAR)

    def __init__(self, config: SwaLinearConfig, site: AttentionSite) -> None:
        super().__init__()
        self.config, self.site = config, site
        self.left_out: frozenset[str] = frozenset()
        self.window = SlidingWindowMixer(
            SlidingWindowConfig(window=config.window, sinks=config.sinks, gain=False), site
        )
        try:
            self.linear = config.linear.build(site)
        except PluginError as error:
            raise PluginError(f"{LINEAR}: {error}") from error
        self.projections: Mapping[str, tuple[str, ...]] = _joined_projections(self._branches())
        self.repeated = frozenset(f"{LINEAR}.{path}" for path in getattr(self.linear, "repeated", ()))
        gates = site.num_heads if config.gates == "head" else 1
        if config.combine != "average":
            self.window_gate = nn.Parameter(torch.ones(gates))
        if config.combine == "sum":
            self.linear_gate = nn.Parameter(torch.zeros(gates))
        if config.combine == "joint":
            self._begin_where_the_window_ends()

    def _begin_where_the_window_ends(self) -> None:
        name = self.config.linear.spec.name
        if not hasattr(self.linear, "start_after"):
            raise PluginError(
                f"combine = 'joint' divides both branches by one sum of weights, but the linear mixer '{name}' has no "
                'such sum; set linear = { type = "feature_map" }, or combine = "sum", in this mixer\'s table'
            )
        try:
            self.linear.start_after(self.window.window)
        except PluginError as error:
            raise PluginError(f"{LINEAR}: {error}") from error

    def _branches(self) -> dict[str, Any]:
        return {WINDOW: self.window, LINEAR: self.linear}

    def roles(self) -> Mapping[str, frozenset[str]]:
        """Those of each branch and its name besides; the gates are "new" and "mix"."""
        found: dict[str, frozenset[str]] = {
            f"{name}.{parameter}": roles | {name}
            for name, branch in self._branches().items()
            for parameter, roles in branch.roles().items()
        }
        found |= {name: frozenset({"new", "mix"}) for name, _ in self.named_parameters(recurse=False)}
        return {name: found[name] for name, _ in self.named_parameters()}

    @torch.no_grad()
    def initialize(self, style: SeedStyle, generator: torch.Generator) -> None:
        """Each branch by its own rules. "mimic": the gates are 1 and ``linear_start``; "scratch": both 1.

        The one gate of "joint" is ``window_start`` in both.
        """
        for branch in self._branches().values():
            branch.initialize(style, generator)
        if self.config.combine == "sum":
            self.window_gate.fill_(1.0)
            self.linear_gate.fill_(self.config.linear_start if style == "mimic" else 1.0)
        if self.config.combine == "joint":
            self.window_gate.fill_(math.log(self.config.window_start / (1 - self.config.window_start)))

    def remarks(self) -> list[str]:
        """What the linear mixer remarks, if it does."""
        return list(getattr(self.linear, "remarks", tuple)())

    def describe_backends(self, device: torch.device | str) -> list[str]:
        """One line for each kernel that the linear branch runs on ``device``."""
        describe = getattr(self.linear, "describe_backends", None)
        return [] if describe is None else describe(device)

    def empty_state(self, batch_size: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """See :class:`linearize.protocols.Mixer`: both branches' states under their names."""
        return {
            f"{name}.{key}": tensor
            for name, branch in self._branches().items()
            for key, tensor in branch.empty_state(batch_size, device=device, dtype=dtype).items()
        }

    def forward(
        self,
        x_BTD: Tensor,
        *,
        valid_BT: Tensor | None = None,
        position: tuple[Tensor, Tensor] | None = None,
        segments_BT: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """See :class:`linearize.protocols.Mixer`."""
        if x_BTD.shape[1] == 0:
            return without_tokens(self, self.site, x_BTD, state)
        outputs: dict[str, Tensor] = {}
        after: State = {}
        for name, branch in self._branches().items():
            before = None if state is None else _of_branch(state, name)
            call = _sums_of(name, branch) if self.config.combine == "joint" else branch
            outputs[name], states = call(
                x_BTD, valid_BT=valid_BT, position=position, segments_BT=segments_BT, state=before
            )
            after |= {f"{name}.{key}": tensor for key, tensor in states.items()}
        if self.config.combine == "joint":
            return self._jointly(outputs).to(x_BTD.dtype), after
        for name in self.left_out:
            outputs[name] = torch.zeros_like(outputs[name])
        return self._combined(outputs[WINDOW], outputs[LINEAR]), after

    def _jointly(self, sums: dict[str, Tensor]) -> Tensor:
        """What is left out keeps its share of the weights, so that what the others add stays as it is."""
        gate = self.window_gate.to(sums[WINDOW].dtype).sigmoid()[:, None]
        sums = {**sums, WINDOW: gate * sums[WINDOW]}
        added = [part[..., :-1] for name, part in sums.items() if name not in self.left_out]
        # At least γ: the best key inside the window weighs as much.
        weights = sums[WINDOW][..., -1:] + sums[LINEAR][..., -1:]
        return torch.stack(added).sum(0) / weights

    def _combined(self, window_BTNV: Tensor, linear_BTNV: Tensor) -> Tensor:
        keep: Tensor | float = 1.0
        if self.training and self.config.window_dropout:
            drawn_B111 = torch.rand(len(window_BTNV), 1, 1, 1, device=window_BTNV.device)
            keep = (drawn_B111 >= self.config.window_dropout).to(window_BTNV.dtype)
        if self.config.combine == "average":
            # Who is alone counts in full, so that each branch learns the whole.
            return (keep * window_BTNV + linear_BTNV) / (keep + 1.0)
        window_gate, linear_gate = (
            gate.to(window_BTNV.dtype).unsqueeze(-1) for gate in (self.window_gate, self.linear_gate)
        )
        return keep * window_gate * window_BTNV + linear_gate * linear_BTNV


def _sums_of(name: str, branch: Any) -> Any:
    """The method ``sums`` of a branch, which a hook or wrapper of the whole branch does not see.

    Raises:
        PluginError: the branch has such a hook or wrapper.
    """
    hooks = branch._forward_hooks, branch._forward_pre_hooks, branch._backward_hooks, branch._backward_pre_hooks
    if any(hooks) or "forward" in vars(branch) or not hasattr(type(branch), "sums"):
        raise PluginError(
            f"something hooks into or wraps the branch '{name}' as a whole ({type(branch).__name__}); with combine = "
            "'joint' a branch is not called, its sums are, so that would have no effect; put it around the modules "
            f"inside '{name}', or around the mixer that holds both branches"
        )
    return branch.sums


def _joined_projections(branches: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What the teacher has -> where every branch takes it."""
    joined: dict[str, tuple[str, ...]] = {}
    for name, branch in branches.items():
        for source, paths in branch.projections.items():
            inside = (paths,) if isinstance(paths, str) else tuple(paths)
            joined[source] = (*joined.get(source, ()), *(f"{name}.{path}" for path in inside))
    return joined


def _of_branch(state: State, name: str) -> State:
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
