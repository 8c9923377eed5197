"""The two losses as sums over tokens; dividing by the number of tokens of a whole optimizer step is the caller's.

Letters: P positions that count, V vocabulary, N heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def kl_sum(teacher_PV: Tensor, student_PV: Tensor, *, temperature: float = 1.0, reverse: bool = False) -> Tensor:
    """Sum over positions of KL(teacher || student), or KL(student || teacher), in nats times temperature squared.

    Computed in float32 whatever the logits are. Source of the temperature: Hinton et al., arXiv 1503.02531, section 2.
    """
    log_p, log_q = (_log_probabilities(logits_PV, temperature) for logits_PV in (teacher_PV, student_PV))
    if reverse:
        log_p, log_q = log_q, log_p
    return (log_p.exp() * (log_p - log_q)).sum() * temperature**2


def _log_probabilities(logits_PV: Tensor, temperature: float) -> Tensor:
    """A token that a model masks (minus infinity, or its dtype's least number) has no probability in both, and no NaN.

    A quarter of float32's range: differences of two such numbers are finite.
    """
    least = torch.finfo(torch.float32).min / 4
    return torch.log_softmax((logits_PV.float() / temperature).clamp_min(least), dim=-1)


def kl_backward(
    head: Callable[[Tensor], Tensor],
    teacher_PD: Tensor,
    student_PD: Tensor,
    *,
    divisor: float,
    temperature: float,
    reverse: bool,
    chunk: int,
    added: Tensor | None = None,
) -> Tensor:
    """Backpropagates ``kl_sum / divisor``, from final hidden states, and ``added``; returns the value of the first.

    The logits of both models exist for ``chunk`` positions at a time, so memory does not grow with T times V.

    Args:
        head: hidden states to logits, by the output projection and what the model does behind it; frozen, shared by
            both models.
        teacher_PD: without grad. student_PD: with the graph that leads to the student's parameters.
        added: another loss on the same graph, which one backward frees.
    """
    leaf_PD = student_PD.detach().requires_grad_()
    total = torch.zeros((), device=student_PD.device)
    for teacher, student in _chunks(teacher_PD, leaf_PD, chunk):
        with torch.no_grad():
            teacher_PV = head(teacher)
        loss = kl_sum(teacher_PV, head(student), temperature=temperature, reverse=reverse) / divisor
        loss.backward()
        total += loss.detach()
    ends: list[tuple[Tensor, Tensor | None]] = [] if added is None else [(added, None)]
    if leaf_PD.grad is not None:
        ends.append((student_PD, leaf_PD.grad.to(student_PD.dtype)))
    if ends:
        torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])
    return total


def _chunks(first: Tensor, second: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, first.shape[0], size):
        yield first[start : start + size], second[start : start + size]


@dataclass(slots=True)
class SiteError:
    """Error of one site relative to its target's variance, summed over tokens: 1 is what predicting the mean gives.

    The sums stay tensors on their device until ``value`` is asked for, so that counting does not wait for a GPU.
    """

    squared_error: Tensor | float = 0.0
    variance: Tensor | float = 0.0

    def add(self, squared_PX: Tensor, target_PX: Tensor) -> None:
        """Counts the tokens of one batch; the mean is each channel's over these tokens."""
        self.squared_error = self.squared_error + squared_PX.detach().sum()
        centred_PX = target_PX.float() - target_PX.float().mean(dim=0, keepdim=True)
        self.variance = self.variance + centred_PX.square().sum()

    def merge(self, other: SiteError) -> None:
        """Counts what another one counted."""
        self.squared_error = self.squared_error + other.squared_error
        self.variance = self.variance + other.variance

    def value(self) -> float:
        """Squared error over variance; 0 before anything was counted."""
        variance = float(self.variance)
        return float(self.squared_error) / variance if variance > 0 else 0.0
