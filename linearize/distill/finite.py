"""Numbers that are not finite: found in the step that makes them, and never written to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from linearize.files.json_file import write_json
from linearize.protocols import Batch


@dataclass(frozen=True, slots=True)
class BadStep:
    """The first optimizer step of a stage that made a number which is not finite.

    Attributes:
        step: counted from 1.
        what: "loss", "gradient" or "update": the first of them that was not finite.
        parameters: those that it befell, as "site.parameter"; empty for a loss.
    """

    step: int
    what: str
    parameters: tuple[str, ...]

    def sites(self) -> tuple[int, ...]:
        """The sites of these parameters, ascending."""
        return tuple(sorted({int(name.partition(".")[0]) for name in self.parameters}))


class FiniteWatch:
    """Remembers, on the device, the first step that was not finite; nothing waits for it until ``first`` is asked.

    Args:
        parameters: the trained parameters by "site.parameter".
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        device = next(iter(self.parameters.values())).device
        num_flags = 1 + 2 * len(self.parameters)  # the loss, then each gradient, then each updated weight
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._flags = torch.zeros(num_flags, dtype=torch.bool, device=device)
        self._before_update: list[Tensor] = []

    def before_update(self, loss: Tensor | float) -> None:
        """Looks at a step's loss and gradients."""
        loss = torch.as_tensor(loss, device=self._step.device, dtype=torch.float64)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        self._before_update = [~loss.isfinite().reshape(1), _are_bad(gradients)]

    def after_update(self, step: int) -> None:
        """Looks at the weights after ``step`` optimizer steps."""
        weights = [parameter.detach() for parameter in self.parameters.values()]
        flags = torch.cat([*self._before_update, _are_bad(weights)])
        is_first = (self._step == 0) & flags.any()
        self._step = torch.where(is_first, step, self._step)
        self._flags = torch.where(is_first, flags, self._flags)

    def first(self) -> BadStep | None:
        """The first bad step; None when all were finite."""
        step = int(self._step)
        if not step:
            return None
        names, flags = list(self.parameters), self._flags.tolist()
        gradients, weights = flags[1 : 1 + len(names)], flags[1 + len(names) :]
        for what, bad in (("gradient", gradients), ("update", weights)):
            if any(bad):
                befallen = tuple(name for name, is_bad in zip(names, bad, strict=True) if is_bad)
                return BadStep(step, what, befallen)
        return BadStep(step, "loss", ())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors with a number that is not finite; waits for the device."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    if not names:
        return []
    bad = _are_bad([tensors[name] for name in names]).tolist()
    return [name for name, is_bad in zip(names, bad, strict=True) if is_bad]


def keep_batch(folder: Path, samples: Sequence[int], batches: Iterable[Batch]) -> None:
    """Writes what a step was trained on, for a person to look at.

    ``samples.json`` has the numbers of its conversations, ``batch-N.safetensors`` the inputs and masks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "samples.json", list(samples))
    for number, batch in enumerate(batches, start=1):
        tensors = {**batch.inputs, "loss_mask": batch.loss_mask_BT, "token_kind": batch.token_kind_BT}
        # Tensors that share memory, such as an expanded mask, cannot be saved as they are.
        save_file(
            {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()},
            folder / f"batch-{number}.safetensors",
        )


def _are_bad(tensors: Sequence[Tensor]) -> Tensor:
    """[len(tensors)] bool: which hold a NaN or an infinity. Their largest magnitude says so, in one pass over all."""
    # The call behind torch.nn.utils.get_total_norm, which gives one number for all: a few launches instead of one each.
    largest = torch._foreach_norm(list(tensors), float("inf"))
    return ~torch.stack([one.to(torch.float32) for one in largest]).isfinite()
