"""Which sites become linear."""

from __future__ import annotations

import pytest

from linearize.plan.layouts import AllLinear, EveryNth, EveryNthConfig, Keep, KeepConfig, Stacked, StackedConfig
from linearize.plugin.specs import NoOptions
from linearize.protocols import AttentionSite


def sites(count: int) -> list[AttentionSite]:
    return [
        AttentionSite(
            index=index, path="", tower="", layer=index, cache_index=index, hidden_size=8, num_heads=2,
            num_key_value_heads=2, key_dim=4, value_dim=4,
        )
        for index in range(count)
    ]  # fmt: skip


def test_all_makes_every_site_linear() -> None:
    assert AllLinear(NoOptions()).linear_sites(sites(3)) == [0, 1, 2]


@pytest.mark.parametrize(("position", "kept"), [("first", [0, 4]), ("last", [3, 7])])
def test_every_nth_keeps_one_site_of_each_block(position: str, kept: list[int]) -> None:
    config = EveryNthConfig.model_validate({"keep": 4, "position": position})
    assert EveryNth(config).linear_sites(sites(8)) == [site for site in range(8) if site not in kept]


def test_every_nth_of_a_decoder_shorter_than_a_block_is_refused() -> None:
    config = EveryNthConfig(keep=4, position="last")
    with pytest.raises(ValueError, match=r"keeps one site of every 4, but the teacher has 3; use a smaller keep"):
        EveryNth(config).linear_sites(sites(3))


@pytest.mark.parametrize(("position", "linear"), [("head", [2, 3, 4]), ("tail", [0, 1, 2])])
def test_stacked_keeps_neighbours_at_one_end(position: str, linear: list[int]) -> None:
    config = StackedConfig.model_validate({"num_kept": 2, "position": position})
    assert Stacked(config).linear_sites(sites(5)) == linear


def test_stacked_with_more_sites_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps 6 sites, but the teacher has 5 \(0..4\)"):
        Stacked(StackedConfig(num_kept=6)).linear_sites(sites(5))


def test_keep_keeps_the_listed_sites() -> None:
    assert Keep(KeepConfig(sites=(3, 0))).linear_sites(sites(5)) == [1, 2, 4]


@pytest.mark.parametrize("site", [-1, 5])
def test_keep_refuses_a_site_that_does_not_exist(site: int) -> None:
    with pytest.raises(ValueError, match=rf"site {site} asked for, the teacher has 5 sites 0..4"):
        Keep(KeepConfig(sites=(site,))).linear_sites(sites(5))
