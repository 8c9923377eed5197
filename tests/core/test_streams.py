"""No run fails because of where it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkout import environment

SCRIPT = """
from linearize.pipeline.streams import take_any_character
from linearize.pipeline.display import ConsoleDisplay
take_any_character()
display = ConsoleDisplay()
for number in range(2000):
    display.note(f"loss 2.54 → 3.91, 91.7–97.6 {number} é")
open("went_on", "w").close()
"""


def test_an_arrow_on_an_ascii_stdout_is_written_in_plain_characters(tmp_path: Path) -> None:
    done = _run(tmp_path, stdout=subprocess.PIPE, encoding="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[0] == b"loss 2.54 -> 3.91, 91.7-97.6 0 ?"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_stdout_ends_the_output_and_not_the_run(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = _run(tmp_path, stdout=full)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "went_on").exists()


def test_a_closed_pipe_ends_the_output_and_not_the_run(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "went_on").exists()


def _run(folder: Path, stdout: object, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        env=_environment(encoding),
        stdout=stdout,
        stderr=subprocess.PIPE,  # type: ignore[call-overload]
    )


def _environment(encoding: str = "utf-8") -> dict[str, str]:
    """Buffered: what is left in a buffer is written once more when the interpreter ends."""
    return environment(PYTHONIOENCODING=encoding, PYTHONUNBUFFERED="")
