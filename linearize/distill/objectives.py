"""What a stage minimises. An objective runs forward and backward of one micro-batch and reports what it measured."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from linearize.distill.hidden import HiddenState, hidden_error, site_inputs
from linearize.distill.logits import FinalHidden, final_hidden, without_logits
from linearize.distill.losses import SiteError, kl_backward
from linearize.distill.options import LayerMseConfig, LogitKlConfig
from linearize.protocols import TOKEN_PAD, TOKEN_TEXT, Batch
from linearize.student.convert import linearized_sites, observe, teacher_route
from linearize.student.site import SiteCapture, every_token


@dataclass(slots=True)
class Measured:
    """What one micro-batch contributed: its share of the step's loss, and each site's error where sites have one."""

    loss: Tensor | float = 0.0
    sites: dict[int, SiteError] = field(default_factory=dict)

    def merge(self, other: Measured) -> None:
        """Adds what another micro-batch contributed."""
        self.loss = self.loss + other.loss
        for index, error in other.sites.items():
            self.sites.setdefault(index, SiteError()).merge(error)


class Objective(Protocol):
    """How a stage turns a batch into gradients."""

    is_layerwise: ClassVar[bool]
    """True where sites are independent: each is trained on the teacher's own inputs."""

    def weight(self, batch: Batch) -> int:
        """How much the batch counts in the step's mean: tokens, or conversations."""
        ...

    def backward(self, model: nn.Module, batch: Batch, sites: Collection[int], total_weight: float) -> Measured:
        """Adds the gradients of this batch's share of the loss to the parameters that require them."""
        ...


class LayerMse:
    """Each mixer against its teacher attention, on the teacher's own inputs (mmMamba, stages 1 and 2).

    The teacher runs once without grad. At each site the captured input goes through the mixer, and its loss is
    backpropagated at once, so that one site's graph exists at a time.
    """

    is_layerwise: ClassVar[bool] = True

    def __init__(self, config: LayerMseConfig) -> None:
        self.config = config

    def weight(self, batch: Batch) -> int:
        """Tokens that count."""
        return int(self._counted(batch).sum())

    def backward(self, model: nn.Module, batch: Batch, sites: Collection[int], total_weight: float) -> Measured:
        """One pass of the teacher; loss and backward at every site."""
        num_counted = self._counted(batch).sum()  # stays on its device: a step does not wait for a number
        measured = Measured()
        # In a packed row pads are a document like any other to the model.
        pads_BT = None if batch.segments_BT is None else batch.token_kind_BT == TOKEN_PAD
        projections = {slot.site.index: slot.o_proj for slot in linearized_sites(model)}

        def at_site(capture: SiteCapture, mixer: nn.Module) -> None:
            project = projections[capture.site.index] if self.config.space == "output" else nn.Identity()
            share = 1 / len(sites) if self.config.reduction == "mean" else 1.0
            with torch.enable_grad():  # the teacher around it runs without
                loss, error = self._site_loss(capture, mixer, project, num_counted, pads_BT)
                scaled = loss * (self.config.scale * share / total_weight)
                scaled.backward()
            measured.loss = measured.loss + scaled.detach()
            measured.sites.setdefault(capture.site.index, SiteError()).add(*error)

        with observe(model, at_site, sites), torch.no_grad(), without_logits(model):
            model(**batch.inputs, use_cache=False)
        return measured

    def _counted(self, batch: Batch) -> Tensor:
        if self.config.tokens == "all":
            return torch.ones_like(batch.loss_mask_BT)
        return batch.token_kind_BT != TOKEN_PAD

    def _site_loss(
        self,
        capture: SiteCapture,
        mixer: nn.Module,
        project: nn.Module,
        num_counted: Tensor,
        pads_BT: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The site's loss, which counts as ``num_counted`` tokens also where a tower runs over patches, not tokens."""
        valid_BT = capture.valid_BT if pads_BT is None else ~pads_BT
        valid_BT = None if self.config.tokens == "all" else valid_BT
        y_BTNV, _ = mixer(capture.x_BTD, valid_BT=valid_BT, position=capture.position, segments_BT=capture.segments_BT)
        counted_BT = every_token(capture.x_BTD) if valid_BT is None else valid_BT
        prediction_PX = project(y_BTNV.flatten(2)[counted_BT])
        target_PX = project(capture.target_BTNV.flatten(2)[counted_BT]).detach()
        squared_PX = (prediction_PX.float() - target_PX.float()).square()
        loss = squared_PX.mean(dim=-1).sum() * (num_counted / len(squared_PX))
        if self.config.normalize == "variance":
            loss = loss / target_PX.float().square().mean().clamp_min(1e-12)
        return loss, (squared_PX, target_PX)


class LogitKl:
    """The student's next-token distribution against the teacher's, the student on its own hidden states (stage 3)."""

    is_layerwise: ClassVar[bool] = False

    def __init__(self, config: LogitKlConfig) -> None:
        self.config = config

    def weight(self, batch: Batch) -> int:
        """Predictions that count, or conversations when the loss is normalised by batch."""
        return batch.num_samples if self.config.normalize == "batch" else int(self._predicting(batch).sum())

    def backward(self, model: nn.Module, batch: Batch, sites: Collection[int], total_weight: float) -> Measured:
        """One pass of the teacher without grad, one of the student, and the chunked KL between them.

        The measured loss is the KL alone, so that it means the same with and without the error of hidden states.
        """
        predicting_BT = self._predicting(batch)
        with torch.no_grad(), teacher_route(model):
            teacher, teacher_states = self._run(model, batch)
        student, student_states = self._run(model, batch)
        added = None
        if self.config.hidden_weight:
            num_valid = (batch.token_kind_BT != TOKEN_PAD).sum()
            error = hidden_error(teacher_states, student_states) * num_valid
            added = error * (self.config.hidden_weight / total_weight)
        loss = kl_backward(
            teacher.to_logits,
            teacher.x_BTD[predicting_BT],
            student.x_BTD[predicting_BT],
            divisor=total_weight,
            temperature=self.config.temperature,
            reverse=self.config.direction == "reverse",
            chunk=self.config.chunk_tokens,
            added=added,
        )
        return Measured(loss)

    def _run(self, model: nn.Module, batch: Batch) -> tuple[FinalHidden, list[HiddenState]]:
        """Final hidden states, and where they are compared those of all layers."""
        if not self.config.hidden_weight:
            return final_hidden(model, batch), []
        valid_BT = batch.token_kind_BT != TOKEN_PAD
        with site_inputs(model) as states:
            final = final_hidden(model, batch)
        if batch.segments_BT is not None:  # pads are a document like any other to the model
            states = [HiddenState(state.x_BTD, valid_BT) for state in states]
        return final, [*states, HiddenState(final.x_BTD, valid_BT)]

    def _predicting(self, batch: Batch) -> Tensor:
        """[B, T], True where the logits of a position count: those that predict a token which counts."""
        kind_BT = batch.token_kind_BT
        if self.config.tokens == "all":
            return torch.ones_like(batch.loss_mask_BT)
        wanted_BT = {
            "answers": batch.loss_mask_BT,
            "text": kind_BT == TOKEN_TEXT,
            "valid": kind_BT != TOKEN_PAD,
        }[self.config.tokens]
        predicting_BT = torch.zeros_like(wanted_BT)
        predicting_BT[:, :-1] = wanted_BT[:, 1:] & (kind_BT[:, :-1] != TOKEN_PAD)
        if batch.segments_BT is not None:  # the last token of a sample predicts nothing of the next
            predicting_BT[:, :-1] &= batch.segments_BT[:, 1:] == batch.segments_BT[:, :-1]
        return predicting_BT
