from __future__ import annotations

import json
import re

from checkout import DOCS

from linearize.data.llava_json import LlavaJsonConfig
from linearize.data.record import parse_record

PAGE = (DOCS / "data.md").read_text(encoding="utf-8")


def test_the_records_of_the_page_are_good() -> None:
    [block] = re.findall(r"```jsonl\n(.*?)```", PAGE, flags=re.DOTALL)
    records = [parse_record(json.loads(line)) for line in block.splitlines()]
    assert [(len(record.turns), len(record.images)) for record in records] == [(1, 1), (1, 2), (2, 2), (1, 0), (1, 1)]


def test_the_option_table_of_the_page_has_every_option_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, flags=re.MULTILINE))
    fields = LlavaJsonConfig.model_fields
    assert rows.keys() == fields.keys()
    for name in ("shuffle", "max_bad", "system"):
        assert rows[name] == f"`{json.dumps(fields[name].default)}`"
