"""JSON files: written by several processes at the same time, sealed, and damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkout import environment

from linearize.files.json_file import read_json, read_sealed, write_json, write_sealed

WRITER = """
import sys
from pathlib import Path
from linearize.files.json_file import write_json
for number in range(200):
    write_json(Path(sys.argv[1]), {"writer": sys.argv[2], "numbers": [number] * 500})
"""


def test_processes_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "answers" / "shared.json"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name], env=environment(), stderr=subprocess.PIPE, text=True
        )
        for name in ("one", "other")
    ]
    broken = 0
    while any(writer.poll() is None for writer in writers):
        broken += path.exists() and read_json(path) is None
    assert [(writer.returncode, writer.communicate()[1]) for writer in writers] == [(0, "")] * 2
    assert broken == 0
    assert [file.name for file in path.parent.iterdir()] == ["shared.json"]


def test_a_sealed_file_that_was_changed_reads_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "done.json"
    write_sealed(path, {"steps": 4, "name": "align"})
    assert read_sealed(path) == {"steps": 4, "name": "align"}
    text = path.read_text(encoding="utf-8")
    for damaged in (text.replace("4", "5"), text.replace("align", "aligm"), text[:-3], "[]", ""):
        path.write_text(damaged, encoding="utf-8")
        assert read_sealed(path) is None


def test_a_file_of_a_release_that_sealed_none_is_taken_as_it_stands(tmp_path: Path) -> None:
    write_json(tmp_path / "done.json", {"steps": 4})
    assert read_sealed(tmp_path / "done.json") == {"steps": 4}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_refused_and_the_old_file_stays(tmp_path: Path, number: float) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"kl": 0.5})
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"kl": number})
    assert read_json(path) == {"kl": 0.5}
