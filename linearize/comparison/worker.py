"""A process of its own for one run, or for measuring speed: ``python -m linearize.comparison.worker JOB.json``.

A crash of a kernel, memory that does not suffice or a broken plug-in then ends this process and nothing else, every
run's peak memory is its own, and no run warms up another one's caches.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from linearize.errors import LinearizeError
from linearize.files.json_file import write_json
from linearize.pipeline.display import ConsoleDisplay
from linearize.pipeline.streams import take_any_character


def main() -> None:
    """Does the job of the file; on failure writes why to the job's ``failure`` and has exit status 1."""
    _die_with_parent()
    take_any_character()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        {"run": _run, "decode": _decode}[job["kind"]](job)
    except LinearizeError as error:
        write_json(Path(job["failure"]), {"text": str(error), "details": ""})
        sys.exit(1)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        write_json(Path(job["failure"]), {"text": text, "details": traceback.format_exc()})
        sys.exit(1)


def _run(job: dict[str, Any]) -> None:
    from linearize.files.run_folder import RunFolder
    from linearize.pipeline.run import run_pipeline
    from linearize.plan.check import check_recipe
    from linearize.plugin.discovery import Plugins

    display = ConsoleDisplay(brief=True)
    checked = check_recipe(job["tables"], (), Plugins.discover())
    try:
        run_pipeline(
            checked.recipe, checked.adapter, checked.source, checked.plan, RunFolder(Path(job["folder"])), display,
            teacher_answers=Path(job["teacher_answers"]),
        )  # fmt: skip
    finally:
        display.close()


def _decode(job: dict[str, Any]) -> None:
    from linearize.comparison.decoding import measure_decoding

    with ConsoleDisplay().counting("decoding speed") as progress:
        measured = measure_decoding(
            job["tables"], {name: Path(folder) for name, folder in job["students"].items()},
            new_tokens=job["new_tokens"], rounds=job["rounds"], progress=progress,
        )  # fmt: skip
    write_json(Path(job["result"]), {"key": job["key"], **measured})


def _die_with_parent() -> None:
    """Ends this process when its parent is gone: it holds the other end of stdin, and a killed one lets go of it."""

    def wait() -> None:
        # Not through sys.stdin, whose lock Python wants to have when it ends.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    from linearize.pipeline.quiet import quieten_libraries

    quieten_libraries()
    main()
