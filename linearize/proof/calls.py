"""What goes through an attention site while the model runs, seen from outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from linearize.protocols import AttentionSite
from linearize.student.site import rotary_angles


@dataclass(slots=True)
class SiteCall:
    """How the decoder called the module at a site in one forward pass, and what came of it.

    Attributes:
        args, kwargs: of the last call.
        output: what the module returned, whatever it is.
        projected: what the output projection got, call by call.
        num_calls: how often the module was called.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    projected: list[Tensor] = field(default_factory=list)
    num_calls: int = 0

    @property
    def x_BTD(self) -> Tensor:
        """The attention's input."""
        given: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return given

    @property
    def position(self) -> Any:
        """Cos and sin as a mixer gets them; None without."""
        return rotary_angles(self.kwargs.get("position_embeddings"))


def watch(attention: nn.Module, site: AttentionSite, call: SiteCall) -> list[Any]:
    """Hooks that fill ``call`` when the module at the site runs; whoever asked for them removes them."""

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.args, call.kwargs, call.num_calls = args, kwargs, call.num_calls + 1

    def project(_: nn.Module, args: tuple[Any, ...]) -> None:
        call.projected.append(args[0])

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call.output = output

    return [
        attention.register_forward_pre_hook(enter, with_kwargs=True),
        attention.get_submodule(site.output_projection).register_forward_pre_hook(project),
        attention.register_forward_hook(leave),
    ]
