"""How much each branch of a student's mixers does: its share of what sites give, and what is lost without it.

Letters: B batch, T tokens, D width, P valid tokens, N query heads, V value width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from linearize.evaluate.agreement import Agreement, answer_logits, compare_logits
from linearize.evaluate.modes import inference
from linearize.evaluate.order import length_ordered_batches
from linearize.student.branches import branch_names, branches_of, leaving_out, without_branch
from linearize.student.convert import linearized_sites, observe
from linearize.student.site import SiteCapture, every_token

if TYPE_CHECKING:
    from torch import Tensor, nn

    from linearize.protocols import TeacherAdapter
    from linearize.protocols.conversation import Conversation


@dataclass(slots=True)
class SiteSums:
    """One site on the teacher's own inputs, summed over valid tokens.

    Attributes:
        norms: branch -> length of what it adds to the site's output, behind the output projection.
        squared_error: of the site's output against the teacher's. without: the same without each branch.
        variance: of the teacher's output; what predicting its mean would give.
    """

    norms: dict[str, float] = field(default_factory=dict)
    squared_error: float = 0.0
    without: dict[str, float] = field(default_factory=dict)
    variance: float = 0.0

    def add(self, target_PD: Tensor, whole_PD: Tensor, without: Mapping[str, Tensor]) -> None:
        """Counts the tokens of one batch; the mean is each channel's over these tokens."""
        self.variance += float((target_PD - target_PD.mean(0)).square().sum())
        self.squared_error += float((whole_PD - target_PD).square().sum())
        for name, rest_PD in without.items():
            self.norms[name] = self.norms.get(name, 0.0) + float((whole_PD - rest_PD).norm(dim=-1).sum())
            self.without[name] = self.without.get(name, 0.0) + float((rest_PD - target_PD).square().sum())

    def shares(self) -> dict[str, float]:
        """Each branch's part of all lengths; 0 for all where none adds anything."""
        total = sum(self.norms.values())
        return {name: norm / total if total > 0 else 0.0 for name, norm in self.norms.items()}

    def error(self, name: str | None = None) -> float:
        """Squared error over variance, of the whole site or without a branch."""
        squared = self.squared_error if name is None else self.without[name]
        return squared / self.variance if self.variance > 0 else 0.0


@dataclass(slots=True)
class BranchMeasures:
    """What the branches do at the sites and to the whole student.

    Attributes:
        sites: by index.
        whole: agreement with the teacher. without: the same without each branch.
    """

    sites: dict[int, SiteSums]
    whole: Agreement
    without: dict[str, Agreement]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> BranchMeasures:
        """What ``dataclasses.asdict`` made of the measures, back from JSON."""
        return cls(
            sites={int(index): SiteSums(**sums) for index, sums in stored["sites"].items()},
            whole=Agreement(**stored["whole"]),
            without={name: Agreement(**agreement) for name, agreement in stored["without"].items()},
        )


def measure_branches(
    model: Any,
    adapter: TeacherAdapter,
    conversations: Sequence[Conversation],
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> BranchMeasures:
    """Compares a converted model with its teacher, whole and without each branch, with the right answers filled in.

    Args:
        progress: called after each batch with the number of conversations in it.
    """
    slots = {slot.site.index: slot for slot in linearized_sites(model) if slot.linear and branches_of(slot.mixer)}
    found = BranchMeasures({index: SiteSums() for index in slots}, Agreement(), {})

    def at_site(capture: SiteCapture, mixer: nn.Module) -> None:
        index = capture.site.index
        found.sites[index].add(*_outputs(capture, mixer, slots[index].o_proj))

    with inference(model):
        for indices in length_ordered_batches(conversations, batch_size, adapter.num_tokens):
            batch = adapter.batch([conversations[index] for index in indices]).to(model.device)
            with observe(model, at_site, list(slots)):
                teacher_PW = answer_logits(model, batch)
            found.whole += compare_logits(teacher_PW, answer_logits(model, batch))
            for name in branch_names(model):
                with without_branch(model, name):
                    agreement = compare_logits(teacher_PW, answer_logits(model, batch))
                found.without[name] = found.without.get(name, Agreement()) + agreement
            if progress is not None:
                progress(len(indices))
    return found


def _outputs(capture: SiteCapture, mixer: nn.Module, project: nn.Module) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What the teacher's site gives at valid tokens, what the mixer's does, and without each branch; float32."""
    counted_BT = every_token(capture.x_BTD) if capture.valid_BT is None else capture.valid_BT

    def projected(y_BTNV: Tensor) -> Tensor:
        output_PD: Tensor = project(y_BTNV.flatten(2)[counted_BT].to(capture.x_BTD.dtype))
        return output_PD.float()

    def run() -> Tensor:
        y_BTNV, _ = mixer(capture.x_BTD, valid_BT=capture.valid_BT, position=capture.position)
        return projected(y_BTNV)

    without = {}
    for name in branches_of(mixer):
        with leaving_out(mixer, name):
            without[name] = run()
    return projected(capture.target_BTNV), run(), without


def describe_branches(measures: BranchMeasures, questions: int, right: Mapping[str | None, float]) -> dict[str, Any]:
    """The results as they are written.

    Args:
        questions: how many were gone through.
        right: share of right answers without each branch, and under None with all.

    Returns:
        questions; whole: kl (teacher || student, nats per answer token), top1_agreement, student (share of right
        answers), site_error (squared error over variance, mean over sites); each.<branch>: share of what the sites
        give, sites (the same by site), and without, which is like whole.
    """

    def described(agreement: Agreement, name: str | None) -> dict[str, Any]:
        errors = [sums.error(name) for sums in measures.sites.values() if name is None or name in sums.without]
        return {
            "kl": agreement.kl, "top1_agreement": agreement.top1, "student": right[name],
            "site_error": sum(errors) / len(errors),
        }  # fmt: skip

    each = {}
    for name, agreement in measures.without.items():
        sites = {str(i): sums.shares()[name] for i, sums in measures.sites.items() if name in sums.norms}
        each[name] = {
            "share": sum(sites.values()) / len(sites), "sites": sites, "without": described(agreement, name),
        }  # fmt: skip
    return {"questions": questions, "whole": described(measures.whole, None), "each": each}
