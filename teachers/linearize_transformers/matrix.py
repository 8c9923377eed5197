"""docs/teachers.md, made from the table that the tests run over: ``python -m linearize_transformers.matrix``."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

from linearize_transformers.attention import find_norms
from linearize_transformers.facts import window
from linearize_transformers.models import empty_model
from linearize_transformers.sites import REFUSALS, FoundSite, find_sites
from linearize_transformers.support import FAMILIES, PUBLISHED_PROMPTS, UNTESTED, Family

PAGE = """# Teachers of the transformers library

`type = "transformers"` takes any decoder-only vision-language model or text LLM of transformers whose attention
modules it understands to the last tensor. It looks at the model's modules, not at a list of names; this page is what
the tests have tried. It is made by `python -m linearize_transformers.matrix > docs/teachers.md`, from the table that
those tests run over.

```toml
[teacher]
type = "transformers"
checkpoint = "HuggingFaceTB/SmolVLM-256M-Instruct"   # or a folder
```

Conversations go through the checkpoint's own chat template and processor; the loss covers answers and the token that
ends them. Special tokens that a person typed, such as `<|im_end|>` in an answer, are text; a conversation that holds a
mark of the prompt which the tokenizer reads as such wherever it stands is a bad record. In a conversation of
`paligemma`, what follows the first answer is read causally, later questions too.
A checkpoint that lacks a tensor of its model, or holds one in another shape or one that its config.json leaves out, is
refused, and so is a quantised one: name the checkpoint that it was made from, or a dequantised copy.
Processors of models that also take videos need `pip install 'linearize[vision]'`, even for still images.

How an attention turns, clamps and scales its queries and keys, and which window it tells, is found by running its own
forward on a few drawn numbers, without a weight. Before a run trains, each site is held against the loaded model on the
first batch, too, and refused where it differs: a family that is not in the table is taken for what it does.

## Tested

Each on a tiny random model of its own class, two layers or more, with its real processor class and images where it
takes them, with all sites linear and with every second one: the teacher route is equal bit for bit; one step of
`layer_mse` and one of `logit_kl` give finite gradients to mixers alone; a left-padded batch decodes with a cache as
without, greedily, by sampling and with beams; a saved student loads with equal tensors; and all of
`linearize.testing.TeacherConformance`.

The tests run on the oldest release of transformers that pyproject.toml admits and on the one in constraints.txt. Of
the older ones, those before 5.21 leave out Gemma 2's soft cap unless `attention = "eager"`, those before 5.23 the soft
cap of PaliGemma 2's logits, 5.17 writes other tokens with PaliGemma under `generate(use_cache=False)`, since it reads
what it wrote in both directions, and some want torchvision for the image processors of SmolVLM, Idefics3 and Ovis2
(`pip install 'linearize[vision]'`).

| model type | images | attention, as stored | sites at | norms | window | positions | caveat |
|---|---|---|---|---|---|---|---|
{rows}

{caveats}

The tests need no torchvision: a stand-in takes the place of video processors, which still images never reach, and
image processors that are written for it alone (`mistral3`, `cohere2_vision`, `lfm2_vl`, `phi4_multimodal`,
`gemma4_unified`) find the functions that they take from it written out. Where torchvision is installed, the same tests
use it.

## Prompts for checkpoints without a chat template

Some of these families have checkpoints that bring none. Then these are taken, which write a question as the family's
processor does; `teacher.chat_template`, Jinja text or a file that holds it, sets another one.

{prompts}

## Not tested

There is no test that runs everything above on:

{untested}

## Refused

A model is refused by its configuration, before a weight is loaded, when one of its attention modules has

{refusals}
- a tensor that is neither projection nor norm of queries and keys, or projections that do not fit its heads;
- an argument without default that the decoders above do not pass;
- a change of queries, keys or values between projections and scores that is no norm, clamp, factor or rotary embedding,
  or of the heads' output that is not the gate of the table;

or when no layer has softmax self-attention, the decoder reads an encoder's keys and values, layers hold neither
attention nor a mixer that is known, or both side by side, or transformers loads it with the class of another model
type. In a hybrid, the layers that are linear already are left alone and only those with softmax attention are sites.
"""


def support_page() -> str:
    """The page as Markdown."""
    noted = list(dict.fromkeys(caveat for family in FAMILIES for caveat in family.caveats))
    return PAGE.format(
        rows="\n".join(_row(family, noted) for family in FAMILIES),
        caveats="\n".join(f"{number}. {caveat}." for number, caveat in enumerate(noted, start=1)),
        prompts="\n\n".join(f"`{name}`\n\n```jinja\n{text}\n```" for name, text in PUBLISHED_PROMPTS.items()),
        untested="\n".join(f"- `{name}`: {why}." for name, why in UNTESTED.items()),
        refusals="\n".join(f"- {why};" for why in dict.fromkeys(why for _, why in REFUSALS)),
    )


def _row(family: Family, noted: list[str]) -> str:
    config = CONFIG_MAPPING[family.model_type](**family.config)
    model = empty_model(config)
    found = find_sites(model)
    text_config = config.get_text_config(decoder=True)
    modules = [model.get_submodule(one.site.path) for one in found]
    windows = {window(module, one, text_config) for module, one in zip(modules, found, strict=True)}
    cells = (
        f"`{family.model_type}`",
        "yes" if family.image else "",
        f"{type(modules[0]).__name__}: {'; or '.join(dict.fromkeys(one.form.name for one in found))}",
        f"`{_common_path(found)}`",
        "q, k" if find_norms(modules[0])[0] is not None else "",
        _windows(windows),
        _positions(found, text_config),
        ", ".join(str(noted.index(caveat) + 1) for caveat in family.caveats),
    )
    return f"| {' | '.join(cells)} |"


def _common_path(found: list[FoundSite]) -> str:
    first = found[0].site
    return first.path.replace(f".{first.layer}.", ".*.")


def _windows(windows: set[int | None]) -> str:
    if windows == {None}:
        return ""
    return "some sites" if None in windows else "all sites"


def _positions(found: list[FoundSite], config: Any) -> str:
    turned = [one.site.has_rope for one in found]
    rope = getattr(config, "rope_parameters", None) or {}
    kind = "mrope" if "mrope_section" in rope else "rotary"
    return kind if all(turned) else f"{kind} at some sites"


if __name__ == "__main__":
    print(support_page(), end="")
