"""Packed documents are read as if each stood alone, however the model is told of them; what cannot be is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DataCollatorWithFlattening, DynamicCache

from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.student.convert import observe, release_teacher, teacher_route
from linearize.student.documents import segments
from linearize.student.entrance import Documents
from linearize.student.site import SiteCapture
from linearize.student.state import CACHE_NAME

LENGTHS = (5, 1, 1, 4)
"""One document is shorter than the convolution, and has another such beside it."""


def _documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(2, 60, (1, length), generator=generator) for length in LENGTHS]


def _student(teacher: Any, layout: str) -> Any:
    spec = Plugins.discover().registry.get(MixerSpec, "mamba2")
    return teacher.convert(None if layout == "all" else teacher.hybrid, spec, conv_width=3)


def _packed(**options: Any) -> dict[str, Any]:
    rows = [{"input_ids": ids[0].tolist()} for ids in _documents()]
    batch = DataCollatorWithFlattening(return_tensors="pt", **options)(rows)
    batch.pop("labels")
    return dict(batch)


def _blocks() -> Tensor:
    """[1, 1, T, T] bool: causal within each document."""
    return torch.block_diag(*(torch.ones(length, length).tril() for length in LENGTHS)).bool()[None, None]


def _alone(model: Any) -> Tensor:
    return torch.cat([model(ids, use_cache=False).logits for ids in _documents()], 1)


WAYS: dict[str, dict[str, Any]] = {
    "position_ids": _packed(),
    "position_ids and boundaries": _packed(return_flash_attn_kwargs=True),
    "everything": _packed(return_flash_attn_kwargs=True, return_seq_idx=True),
    "bool blocks": {"input_ids": _packed()["input_ids"], "attention_mask": _blocks()},
    "float blocks": {
        "input_ids": _packed()["input_ids"],
        "attention_mask": torch.zeros(1, 1, 11, 11).masked_fill(~_blocks(), torch.finfo(torch.float32).min),
    },
}
"""What transformers' own attention heeds without a cache."""
LINEAR_ALONE: dict[str, dict[str, Any]] = {
    "boundaries": _packed(return_flash_attn_kwargs=True),
    "seq_idx": _packed(return_seq_idx=True),
    "numbers in the mask": {
        "input_ids": _packed()["input_ids"],
        "attention_mask": torch.arange(1, 5).repeat_interleave(torch.tensor(LENGTHS))[None],
    },
    "position_ids beside a mask": _packed() | {"attention_mask": torch.ones(1, 11, dtype=torch.long)},
}
"""What it takes no notice of."""
for way in ("boundaries", "seq_idx"):
    LINEAR_ALONE[way]["position_ids"] = torch.arange(11)[None]


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["all", "hybrid", "released hybrid"])
def test_packed_documents_are_read_apart(llama: Any, layout: str, way: str) -> None:
    model = _student(llama, layout)
    if layout.startswith("released"):
        release_teacher(model)
    inputs = WAYS[way]
    if "position_ids" not in inputs:
        inputs = inputs | {"position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None]}
    # fp32: the same sums in another order.
    torch.testing.assert_close(model(**inputs, use_cache=False).logits, _alone(model), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("way", LINEAR_ALONE)
def test_what_no_attention_reads_is_honoured_by_linear_sites(llama: Any, way: str) -> None:
    """The mixer has no positions, so that those which do not begin again are no error here."""
    model = _student(llama, "all")
    torch.testing.assert_close(
        model(**LINEAR_ALONE[way], use_cache=False).logits, _alone(model), rtol=1e-4, atol=1e-4
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("way", LINEAR_ALONE)
@pytest.mark.parametrize("layout", ["hybrid", "released hybrid"])
def test_attention_that_would_look_across_documents_is_refused(llama: Any, layout: str, way: str) -> None:
    model = _student(llama, layout)
    if layout.startswith("released"):
        release_teacher(model)
    with pytest.raises(ValueError, match=r"attention of site 0 .* would look from one into another"):
        model(**LINEAR_ALONE[way], use_cache=False)
    model(_documents()[0], use_cache=False)  # the refused call left nothing behind


@torch.no_grad()
@pytest.mark.parametrize("teacher", ["smolvlm", "hovle"], indirect=True)
@pytest.mark.parametrize("layout", ["all", "hybrid"])
def test_two_towers_and_nested_decoders_read_documents_apart(teacher: Any, layout: str) -> None:
    model = _student(teacher, layout)
    packed = model(**WAYS["everything"], use_cache=False).logits
    torch.testing.assert_close(packed, _alone(model), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_cache_keeps_the_attention_of_a_hybrid_from_parting_documents(llama: Any) -> None:
    model = _student(llama, "hybrid")
    with pytest.raises(ValueError, match="use_cache=False"):
        model(**WAYS["position_ids"], use_cache=True)


@torch.no_grad()
def test_a_cache_goes_on_from_the_last_document(llama: Any) -> None:
    model, cache = _student(llama, "all"), DynamicCache()
    model(**WAYS["position_ids"], **{CACHE_NAME: cache})
    more = torch.tensor([[9, 11, 13]])
    after = model(more, **{CACHE_NAME: cache}).logits
    alone = model(torch.cat([_documents()[-1], more], 1)).logits[:, -3:]
    torch.testing.assert_close(after, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_inner_decoders_read_documents_too(llama: Any) -> None:
    model = _student(llama, "all")
    packed = model.model(**WAYS["position_ids"], use_cache=False).last_hidden_state
    alone = torch.cat([model.model(ids, use_cache=False).last_hidden_state for ids in _documents()], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_layers_that_are_recomputed_get_the_same_gradients(llama: Any) -> None:
    model = _student(llama, "hybrid").train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            # The second name is the one before transformers 5.23.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.zero_grad()
        model(**WAYS["position_ids"], use_cache=False).logits.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert gradients[0]
    for plain, checked in zip(*gradients, strict=True):
        assert torch.equal(plain, checked)


@torch.no_grad()
def test_the_teacher_route_shows_mixers_where_documents_begin(llama: Any) -> None:
    model, captures = _student(llama, "all"), list[SiteCapture]()
    alone = []
    with teacher_route(model):
        alone = [model(ids, use_cache=False).logits for ids in _documents()]
    with observe(model, lambda capture, mixer: captures.append(capture), [0, 2]):
        packed = model(**WAYS["position_ids"], use_cache=False).logits
        model(_documents()[0], use_cache=False)
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-4)
    for capture in captures[:2]:
        assert capture.segments_BT is not None
        assert capture.segments_BT.tolist() == [[0] * 5 + [1, 2] + [3] * 4]
    assert [capture.segments_BT for capture in captures[2:]] == [None, None]


@torch.no_grad()
@pytest.mark.parametrize("teacher", ["hovle_post"], indirect=True)
def test_a_tower_over_other_tokens_than_the_text_refuses_documents(teacher: Any) -> None:
    model = _student(teacher, "all")
    positions = torch.arange(11)[None].expand(2, -1).clone()
    positions[:, 9:] = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="runs over"):
        model(**teacher.inputs | {"position_ids": positions}, use_cache=False)


ONES = torch.ones(1, 6, dtype=torch.long)


def _starts(inputs: dict[str, Any], **options: Any) -> list[list[int]] | None:
    found = segments(inputs | {"input_ids": ONES}, 1, 6, **options)
    return None if found is None else found[0].tolist()


def test_positions_of_one_document_are_taken_for_one() -> None:
    left_padded = {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])}
    assert _starts({"position_ids": torch.tensor([[1, 1, 0, 1, 2, 3]])} | left_padded) is None
    assert _starts({"position_ids": torch.tensor([[0, 0, 0, 1, 2, 3]])} | left_padded) is None
    # The positions of a batch with a hole in it, counted with the hole.
    hole = {"attention_mask": torch.tensor([[1, 1, 0, 0, 1, 1]])}
    assert _starts({"position_ids": torch.arange(6)[None]} | hole) is None
    assert _starts({"position_ids": torch.arange(4, 10)[None], CACHE_NAME: DynamicCache()}, seen=4) is None


def test_positions_that_jump_begin_a_document_where_the_attention_takes_them_so() -> None:
    """Without a mask and a cache transformers parts a row wherever a position is not the next one."""
    ids, jumps = torch.ones(1, 5, dtype=torch.long), torch.tensor([[0, 1, 2, 7, 8]])
    found = segments({"input_ids": ids, "position_ids": jumps}, 1, 5)
    assert found is not None
    assert found[0].tolist() == [[0, 0, 0, 1, 1]]
    for beside in ({"attention_mask": torch.ones_like(ids)}, {CACHE_NAME: DynamicCache()}):
        assert segments({"input_ids": ids, "position_ids": jumps, **beside}, 1, 5) is None


def test_documents_that_a_recomputed_layer_would_not_get_are_refused(llama: Any) -> None:
    site, x = llama.sites[0], torch.zeros(1, 2, 4)
    documents = Documents(torch.tensor([[0, 1]]), "seq_idx", recomputes=True)
    assert documents.at(x, documents.segments_BT, site) is documents.segments_BT
    with pytest.raises(ValueError, match=r"decoder of site 0 .* hands no keywords on"):
        documents.at(x, None, site)


def test_images_that_repeat_positions_are_no_documents() -> None:
    """A word, four patches two by two, a word: time, height and width as Qwen2-VL counts them."""
    one = torch.tensor([[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]])[:, None]
    image_first = torch.tensor([[0, 0, 0, 0, 2, 3], [0, 0, 1, 1, 2, 3], [0, 1, 0, 1, 2, 3]])[:, None]
    video = torch.tensor([[0, 0, 1, 1, 2, 3], [0, 0, 0, 0, 2, 3], [0, 1, 0, 1, 2, 3]])[:, None]
    for axes in (one, image_first, video):
        assert _starts({"position_ids": axes}) is None
        assert _starts({"position_ids": axes, "attention_mask": ONES}) is None
    # With the text's own positions in front.
    assert _starts({"position_ids": torch.cat([torch.arange(6)[None, None], one])}) is None
    two = torch.cat([one[..., :3], torch.arange(3).expand(3, 1, -1)], -1)
    assert _starts({"position_ids": two}) == [[0, 0, 0, 1, 1, 1]]
    text = torch.tensor([[[0, 1, 2, 0, 1, 2]]])
    assert _starts({"position_ids": torch.cat([text, one])}) == [[0, 0, 0, 1, 1, 1]]


def test_pads_between_documents_are_passed_over() -> None:
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]])
    assert _starts({"position_ids": torch.tensor([[0, 1, 1, 0, 1, 1]]), "attention_mask": mask}) == [[0, 0, 0, 1, 1, 1]]
    assert _starts({"attention_mask": torch.tensor([[1, 1, 0, 2, 2, 0]])}) == [[0, 0, 0, 1, 1, 1]]


def test_a_sliding_window_ends_no_document() -> None:
    """Row 0 of a batch in a second turn: its first answer was followed by more pads than the window is wide."""
    real = torch.tensor([1, 1, 0, 0, 0, 1]).bool()
    window = torch.ones(6, 6).tril().triu(-2).bool() & real
    assert _starts({"attention_mask": window[None, None]}, window=3) is None


def test_arguments_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"position_ids says .* tokens \(0, 3\).*, seq_idx says \(0, 2\)"):
        _starts({"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "seq_idx": torch.tensor([[0, 0, 1, 1, 1, 1]])})


def test_what_a_recurrence_cannot_follow_is_refused() -> None:
    tree = torch.ones(6, 6).tril().bool()
    tree[3:, 1:3] = False
    with pytest.raises(ValueError, match=r"hides from tokens \(0, 3\)"):
        _starts({"attention_mask": tree[None, None]})
    block_mask = create_block_mask(lambda b, h, q, k: q >= k, 1, None, 128, 128, device="cpu")
    with pytest.raises(ValueError, match="attention_mask of type BlockMask"):
        _starts({"attention_mask": block_mask})
    with pytest.raises(ValueError, match=r"cu_seq_lens_q is \[0, 4, 9\]; expected"):
        _starts({"cu_seq_lens_q": torch.tensor([0, 4, 9])})
    with pytest.raises(ValueError, match=r"seq_idx has shape \(1, 5\); expected \(1 or 1, 6\)"):
        _starts({"seq_idx": torch.zeros(1, 5)})


@torch.no_grad()
def test_a_block_mask_of_flex_attention_is_refused_by_the_model(llama: Any) -> None:
    block_mask = create_block_mask(lambda b, h, q, k: q >= k, 1, None, 11, 11, device="cpu")
    with pytest.raises(ValueError, match="attention_mask of type BlockMask"):
        _student(llama, "all")(WAYS["position_ids"]["input_ids"], attention_mask=block_mask)
