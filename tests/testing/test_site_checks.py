"""What the kit says of one site: angles that a decoder passes in another order than the site reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from linearize.testing import MixerConformance
from linearize.testing.site_checks import check_rope

TOKENS, R = 7, 4
ANGLES_BTX = torch.arange(1, TOKENS + 1).view(1, TOKENS, 1) * torch.tensor([1.0, 0.1])
APART, BESIDE, ONCE = (
    (angles_BTR.cos(), angles_BTR.sin())
    for angles_BTR in (
        torch.cat([ANGLES_BTX, ANGLES_BTX], -1),
        ANGLES_BTX.repeat_interleave(2, -1),
        torch.cat([ANGLES_BTX, ANGLES_BTX + 1], -1),
    )
)
HALF, INTERLEAVED = (replace(MixerConformance.site, rope_style=style) for style in ("half", "interleaved"))


def test_angles_are_taken_where_the_site_reads_them() -> None:
    check_rope(HALF, APART)
    for position in (APART, BESIDE):  # mixers read both, pair by pair
        check_rope(INTERLEAVED, position)


def test_angles_beside_each_other_at_a_site_of_halves_are_answered_with_both_ways_out() -> None:
    with pytest.raises(AssertionError, match=r"2i and 2i \+ 1, but the site has rope_style = 'half'.*wrong order"):
        check_rope(HALF, BESIDE)


@pytest.mark.parametrize("site", [HALF, INTERLEAVED], ids=["half", "interleaved"])
@pytest.mark.parametrize("broken", ["both", "sin"])
def test_angles_that_do_not_stand_twice_are_refused(site: object, broken: str) -> None:
    position: tuple[Tensor, Tensor] = ONCE if broken == "both" else (APART[0], ONCE[1])
    with pytest.raises(AssertionError, match="do not hold each angle twice"):
        check_rope(site, position)  # type: ignore[arg-type]
