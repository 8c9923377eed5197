"""The model card of a saved student, from what its configuration knows and nothing else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

from linearize.student.description import StudentDescription, read_description

CARD = """---
library_name: transformers
tags: [linearize, linear-attention]
---
# {title}

{linear} of the {total} attention sites of a `{base}` model run in linear time; {kept}. Made by linearize {version}.

| sites | tower | layers | mixer |
|---|---|---|---|
{rows}

{parameters:,} parameters, weights in {dtype}. A linear site keeps a state of constant size instead of keys and values.

## Load it

```python
import linearize.auto
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this/folder")
processor = AutoProcessor.from_pretrained("this/folder")
```

linearize, the plug-in of a teacher with the model type `{base}`, and those of the mixers ({plugins}) must be installed.
Instead of the import, `trust_remote_code=True` does.

## What it was made from

{origin}

## Limits

A state of constant size holds less than a growing cache: expect losses first where much must be recalled word by word,
such as long texts, many images and fine print. `generate()` takes the default cache; assisted decoding, which steps
back, is refused.
"""


def model_card(student: Any) -> str:
    """README.md of a student, as Markdown."""
    description = read_description(student.config.linearize)
    return CARD.format(
        title=f"Linear student of {description.base}",
        linear=len(description.mixers),
        total=len(description.sites),
        base=description.base,
        kept=_kept(description),
        version=description.version,
        rows=_rows(description),
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        dtype=str(student.dtype).removeprefix("torch."),
        plugins=", ".join(sorted({entry.plugin or entry.type for entry in description.mixers})) or "none",
        origin=_origin(description),
    )


def _kept(description: StudentDescription) -> str:
    kept = sorted({site.index for site in description.sites} - set(description.linear_sites()))
    if not kept:
        return "no attention is left"
    return f"the others ({', '.join(map(str, kept))}) keep their softmax attention"


def _rows(description: StudentDescription) -> str:
    """A row for each run of neighbouring sites of one tower that have the same mixer, or keep their attention."""
    mixers = {entry.site: f"{entry.type} `{json.dumps(entry.options)}`" for entry in description.mixers}
    told = [(site.tower, mixers.get(site.index, "attention, kept"), site) for site in description.sites]
    rows = []
    for (tower, mixer), group in itertools.groupby(told, key=lambda item: item[:2]):
        sites = [site for *_, site in group]
        rows.append(f"| {_span(s.index for s in sites)} | {tower} | {_span(s.layer for s in sites)} | {mixer} |")
    return "\n".join(rows)


def _span(numbers: Iterable[int]) -> str:
    first, *rest = numbers
    return f"{first}–{rest[-1]}" if rest else str(first)


def _origin(description: StudentDescription) -> str:
    if not description.extra:
        return "Not recorded."
    return f"```json\n{json.dumps(description.extra, indent=2)}\n```"
