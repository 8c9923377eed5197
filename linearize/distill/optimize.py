"""Optimizers and learning rates of one stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linearize.recipe.model import LrSchedule, Optimizer, Stage


def learning_rate_factor(schedule: LrSchedule, step: int, steps: int) -> float:
    """The factor on the peak learning rate for a step counted from 0: warm-up, plateau, decay.

    A pure function of the step, so that resuming needs no scheduler state.
    """
    planned = schedule.planned_steps or steps
    warmup = schedule.warmup * planned
    decay_start = planned - schedule.decay * planned
    if step < warmup:
        return (step + 1) / max(warmup, 1.0) if step + 1 < warmup else 1.0
    if step < decay_start or schedule.decay == 0:
        return 1.0
    remaining = max(planned - step, 0) / max(planned - decay_start, 1e-9)
    return schedule.final + (1 - schedule.final) * min(remaining, 1.0)


class StageOptimizer:
    """The optimizers of one stage under one learning-rate schedule and one gradient clip.

    Args:
        parameters: trained parameters by unique name; the order decides where optimizer state belongs.
        decay_constants: names of those that set how fast the state decays (role "decay").
    """

    def __init__(
        self, stage: Stage, parameters: Mapping[str, nn.Parameter], decay_constants: Collection[str] = ()
    ) -> None:
        self.stage = stage
        self.parameters = dict(parameters)
        options = stage.optimizer
        muon = {name for name, parameter in parameters.items() if options.type == "muon" and parameter.ndim == 2}
        rest = {name: parameter for name, parameter in parameters.items() if name not in muon}
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if rest:
            self._optimizers.append((_adamw(rest, options, stage.lr, decay_constants), stage.lr))
        if muon:
            matrices = [parameters[name] for name in parameters if name in muon]
            optimizer = torch.optim.Muon(matrices, lr=options.muon_lr, weight_decay=options.weight_decay)
            self._optimizers.append((optimizer, options.muon_lr))

    def step(self, step: int) -> float:
        """Clips, updates every trained parameter and clears the gradients. Returns the learning rate.

        Args:
            step: optimizer steps already taken in this stage.
        """
        factor = learning_rate_factor(self.stage.lr_schedule, step, self.stage.steps)
        if self.stage.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.stage.clip)
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self.stage.lr * factor

    def state_tensors(self) -> dict[str, Tensor]:
        """Every optimizer's state as flat named tensors."""
        return {
            f"{number}.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
            for number, (optimizer, _) in enumerate(self._optimizers)
            for index, entries in optimizer.state_dict()["state"].items()
            for key, value in entries.items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what ``state_tensors`` gave."""
        for number, (optimizer, _) in enumerate(self._optimizers):
            state: dict[int, dict[str, Any]] = {}
            for name, tensor in tensors.items():
                owner, index, key = name.split(".", 2)
                if int(owner) == number:
                    state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _adamw(
    parameters: Mapping[str, nn.Parameter], options: Optimizer, lr: float, decay_constants: Collection[str]
) -> torch.optim.AdamW:
    if options.no_decay == "vectors":
        spared = {name for name, parameter in parameters.items() if parameter.ndim < 2}
    else:
        spared = {name for name in parameters if "bias" in name or name in decay_constants}
    groups = [
        {"params": [p for name, p in parameters.items() if name not in spared], "weight_decay": options.weight_decay},
        {"params": [p for name, p in parameters.items() if name in spared], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=lr, betas=options.betas, eps=options.eps
    )
