"""Starting points for a mixer that takes an attention's place (mmMamba, section 3.2; Table 4 compares the three).

Works on any mixer that follows the Mixer protocol: which of its parameters can take the teacher's projections, and how
its other parameters are set, the mixer says itself. The output projection belongs to the site, not to the mixer; it is
shared and frozen.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linearize.errors import PluginError
from linearize.mixing.heads import repeat_for_query_heads
from linearize.plugin.specs import NoOptions
from linearize.protocols import AttentionSite, AttentionWeights, SeedReport, SeedStyle

KEPT = frozenset({"o", "o_bias"})
NORMS = frozenset({"q_norm", "k_norm"})
GIVEN = frozenset({"q", "k", "v"}) | NORMS


@dataclass(frozen=True, slots=True)
class AttentionSeeder:
    """Seeds a mixer from one attention.

    Attributes:
        style: how the mixer sets its "new" parameters.
        copies: take q, k, v (and their biases) from the teacher, and the norms of q and k where the mixer has them.
    """

    style: SeedStyle
    copies: bool

    def seed(
        self, weights: AttentionWeights, mixer: Any, *, site: AttentionSite, generator: torch.Generator
    ) -> SeedReport:
        """Sets every parameter of ``mixer`` and accounts for each of them and for each teacher tensor.

        In the report a parameter is "copied" (the teacher's values; where the mixer asks for it, those of a key-value
        head once for each query head that shared it), "derived" (set to mimic attention; some of these
        values may be random, as a gate's) or "fresh" (knows nothing of attention). A teacher tensor is "used", "kept"
        (the output projection, which the site goes on using) or "dropped" (the mixer has no place for it, as linear
        mixers for norms of q and k).

        Raises:
            PluginError: a projection has another shape than the teacher's (the text names both), or the mixer breaks
                its protocol: roles that do not match its parameters, a "qkv" parameter that no projection names, or a
                parameter that ``initialize`` leaves unset.
        """
        who = f"site {site.index} ({site.path}), mixer {type(mixer).__name__}"
        parameters = dict(mixer.named_parameters())
        roles = _checked_roles(mixer, parameters, who)
        teacher = weights.tensors()
        copied = _matched(mixer, parameters, teacher, site, who) if self.copies else {}
        if self.copies:
            _check_claims(copied, roles, who)

        report = SeedReport(site=site.index)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.fill_(torch.nan)
            mixer.initialize(self.style, generator)
            for name, (source, tensor) in copied.items():
                if tensor is not None:
                    parameters[name].copy_(tensor)
                    report.teacher[source] = "used"
                elif source not in NORMS:  # a teacher without a norm has no weight for it; it stays as initialized
                    parameters[name].zero_()
                report.parameters[name] = "derived" if tensor is None else "copied"
        unset = sorted(name for name, parameter in parameters.items() if bool(parameter.isnan().any()))
        if unset:
            raise PluginError(f"{who}: initialize('{self.style}') left {', '.join(unset)} unset; it must set them all")
        new = "derived" if self.style == "mimic" else "fresh"
        report.parameters = {name: report.parameters.get(name, new) for name in parameters}
        report.teacher = {name: report.teacher.get(name, "kept" if name in KEPT else "dropped") for name in teacher}
        return report


def mimic(config: NoOptions) -> AttentionSeeder:
    """The paper's own: q, k, v inherited, the other parameters set so that the mixer starts near attention."""
    del config
    return AttentionSeeder(style="mimic", copies=True)


def copy_qkv(config: NoOptions) -> AttentionSeeder:
    """Q, k, v inherited, the other parameters fresh."""
    del config
    return AttentionSeeder(style="scratch", copies=True)


def scratch(config: NoOptions) -> AttentionSeeder:
    """Everything fresh; the teacher's q, k, v are dropped."""
    del config
    return AttentionSeeder(style="scratch", copies=False)


def _checked_roles(mixer: Any, parameters: dict[str, nn.Parameter], who: str) -> dict[str, frozenset[str]]:
    roles = dict(mixer.roles())
    if roles.keys() != parameters.keys():
        missing, surplus = sorted(parameters.keys() - roles.keys()), sorted(roles.keys() - parameters.keys())
        raise PluginError(
            f"{who}: roles() must name every parameter and nothing else; "
            f"without a role: {', '.join(missing) or 'none'}; no parameter: {', '.join(surplus) or 'none'}"
        )
    odd = sorted(name for name, found in roles.items() if len(found & {"qkv", "new"}) != 1)
    if odd:
        raise PluginError(f"{who}: a parameter has exactly one of the roles 'qkv' and 'new'; not so {', '.join(odd)}")
    return roles


def _check_claims(copied: Collection[str], roles: dict[str, frozenset[str]], who: str) -> None:
    unclaimed = sorted(name for name, found in roles.items() if "qkv" in found and name not in copied)
    if unclaimed:
        raise PluginError(
            f"{who}: no entry of `projections` leads to {', '.join(unclaimed)}, which have the role 'qkv'"
        )
    misplaced = sorted(name for name in copied if "qkv" not in roles[name])
    if misplaced:
        raise PluginError(f"{who}: `projections` lead to {', '.join(misplaced)}, whose role is 'new'; expected 'qkv'")


def _matched(
    mixer: Any, parameters: dict[str, nn.Parameter], teacher: dict[str, Tensor], site: AttentionSite, who: str
) -> dict[str, tuple[str, Tensor | None]]:
    """Mixer parameter -> teacher tensor's name and its value there; none for a bias or norm that the teacher lacks."""
    matched: dict[str, tuple[str, Tensor | None]] = {}
    for source, paths in mixer.projections.items():
        if source not in GIVEN:
            raise PluginError(
                f"{who}: `projections` names '{source}'; a seeder can give {', '.join(sorted(GIVEN))} of an attention"
            )
        for path in (paths,) if isinstance(paths, str) else paths:
            name = f"{path}.weight"
            if name not in parameters:
                raise PluginError(
                    f"{who}: `projections` sends {source} to '{path}', but there is no parameter '{name}'"
                )
            matched[name] = (source, teacher.get(source))
            if f"{path}.bias" in parameters:
                matched[f"{path}.bias"] = (f"{source}_bias", teacher.get(f"{source}_bias"))
    return {
        name: (source, None if tensor is None else _fitted(mixer, name, parameters[name], source, tensor, site, who))
        for name, (source, tensor) in matched.items()
    }


def _fitted(
    mixer: Any, name: str, parameter: Tensor, source: str, tensor: Tensor, site: AttentionSite, who: str
) -> Tensor:
    """The teacher's tensor as the parameter has it: the same, or its heads once for each query head."""
    is_repeated = name.rpartition(".")[0] in getattr(mixer, "repeated", ())
    copies = site.num_heads // site.num_key_value_heads if is_repeated else 1
    rows, *columns = parameter.shape
    due = [rows // copies, *columns]
    if list(tensor.shape) != due:
        which = "" if copies == 1 else f", {copies} copies of each head of {due}"
        raise PluginError(
            f"{who}: {name} has shape {list(parameter.shape)}{which}, the teacher's {source} has "
            f"{list(tensor.shape)}; build the mixer with the site's heads and widths, or use seeder 'scratch'"
        )
    return tensor if copies == 1 else repeat_for_query_heads(tensor, site)
