"""docs/write_a_teacher.md as its reader goes through it: every command typed and every file written as they stand."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import DOCS, ROOT

import linearize.testing
from linearize.scaffold import teacher_files
from linearize.student.state import CACHE_NAME
from linearize.testing import TeacherConformance

pytestmark = pytest.mark.slow

PAGE = (DOCS / "write_a_teacher.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^`([\w/.]+)`\n\n)?^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
"""(path of a file or "", language, content), in the order of the page."""


def test_the_page_leads_from_nothing_to_a_student(author: Any) -> None:
    printed = ""
    for path, language, content in BLOCKS:
        if language == "sh":
            printed = author.types(content)
        elif language == "text":
            assert shows(printed, content), f"the page shows\n{content}\nbut what came was\n{printed}"
        else:
            assert path, f"no file is named above\n{content}"
            assert (author.folder / path).is_file(), f"{path} is not a file of the new package"
            (author.folder / path).write_text(as_the_release_names_it(path, content), encoding="utf-8")
    assert (author.folder / "runs" / "duet" / "student" / "model.safetensors").is_file()
    assert (author.folder / "runs" / "duet" / "report" / "index.html").is_file()


def as_the_release_names_it(path: str, content: str) -> str:
    """The model with the installed transformers' name of the cache, as the page says it."""
    return re.sub(r"\bcache\b", CACHE_NAME, content) if path.endswith("model.py") else content


def test_the_code_of_the_page_is_formatted_and_lint_free(tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    for path, _, content in BLOCKS:
        if path:
            (tmp_path / Path(path).name).write_text(content, encoding="utf-8")
    # I001: how imports are sorted depends on where a package lies.
    for command in (["check", "--ignore", "I001"], ["format", "--check"]):
        call = [ruff, *command, "--no-cache", "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
        done = subprocess.run(call, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def shows(printed: str, excerpt: str) -> bool:
    """Whether the parts of an excerpt between its dots were printed, in order; how lines are broken does not matter."""
    whole, place = " ".join(printed.split()), 0
    for part in excerpt.split("..."):
        words = " ".join(part.split())
        found = whole.find(words, place)
        if found < 0:
            return False
        place = found + len(words)
    return True


def test_an_excerpt_is_not_found_in_another_order_or_with_other_words() -> None:
    assert shows("one  two\nthree", "one two ... three")
    assert not shows("one two three", "three ... one")
    assert not shows("one two three", "one three")


def test_the_table_of_files_names_those_that_the_command_writes() -> None:
    listed = re.findall(r"^\| `linearize_duet/([\w/.]+)` \|", PAGE, re.MULTILINE)
    files = {path for path, text in teacher_files("duet").items() if text} - {"pyproject.toml", "README.md"}
    assert set(listed) == files


def test_every_check_of_the_kit_is_listed_in_its_order() -> None:
    listed = re.findall(r"^\| ([\w ]+) \| (?!what |---)", PAGE.partition("## The checks")[2], re.MULTILINE)
    checks = [name for name in vars(TeacherConformance) if name.startswith("test_")]
    assert [f"test_{words.lower().replace(' ', '_')}" for words in listed] == checks


def test_every_message_on_the_page_is_one_of_the_kit() -> None:
    table = PAGE.partition("| a message with these words |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| ([^|]+) \|", table.partition("\n")[2].partition("\n")[2], re.MULTILINE)
    assert len(listed) > 10
    texts = list(messages())
    assert [words for words in listed if not any(words in text for text in texts)] == []


def messages() -> Iterator[str]:
    """Every string in the code of the kit, and of the proof and the objectives below it, as one reads it."""
    kit = Path(linearize.testing.__file__).parent
    for path in (*kit.glob("*.py"), *(kit.parent / "proof").glob("*.py"), *(kit.parent / "distill").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant):
                yield str(node.value)
