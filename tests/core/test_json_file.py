"""Files that several processes write at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from linearize.files.json_file import read_json

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
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stderr=subprocess.PIPE, text=True)
        for name in ("one", "other")
    ]
    broken = 0
    while any(writer.poll() is None for writer in writers):
        broken += path.exists() and read_json(path) is None
    assert [(writer.returncode, writer.communicate()[1]) for writer in writers] == [(0, "")] * 2
    assert broken == 0
    assert [file.name for file in path.parent.iterdir()] == ["shared.json"]
