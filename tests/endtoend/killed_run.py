"""Types one command again and again, and kills it each time at a given moment until all moments are used up.

    python killed_run.py MOMENTS.json -- run RECIPE --set KEY=VALUE ...

MOMENTS.json is a list of {"events": N} (just before the N-th thing that is done to a file under runs/), {"path": PART,
"events": N} (the same, counting only paths that hold PART) and {"seconds": S}. After the last one the command is typed
until it ends by itself; an attempt that was faster than its moment ends all this too. Prints a JSON list: how each
attempt ended and what was there then.

Every attempt is forked from a process that has imported everything and computed nothing: the same code as in a fresh
process, without seconds of imports in front of each.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVERYTHING = (
    "linearize.api", "linearize.pipeline.run", "linearize_glance.benchmark", "linearize_glance.source",
    "linearize_hovle.adapter", "linearize_mamba2.mixer", "linearize_mmmamba.schedule",
    "linearize.mixing.attention_seeder",
)  # fmt: skip
"""What a run imports."""
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def kill_before(part: str, count: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that kills its own process, as hard as a power cut kills it for the program."""
    left = count

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in FILE_EVENTS or not isinstance(arguments[0], str | os.PathLike):
            return
        # A rename counts by where it leads, which is what appears.
        path = str(arguments[1] if event == "os.rename" else arguments[0])
        if "runs/" in path and part in path:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def attempt(arguments: list[str], moment: dict[str, Any] | None) -> int:
    """Types the command once; gives its exit status, negative when it was killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if moment is not None and "events" in moment:
            sys.addaudithook(kill_before(moment.get("path", ""), moment["events"]))
        sys.argv = ["linearize", *arguments]
        status = 99
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os._exit(status)
    if moment is not None and "seconds" in moment:
        time.sleep(moment["seconds"])
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def what_is_there(run: Path) -> str:
    """How far the run has got, for a person who reads a failure."""
    marks = [f"{path.parent.name} done" for path in sorted(run.glob("stages/*/done.json"))]
    newest = sorted(run.glob("stages/*/checkpoints/*"), key=lambda path: (path.parent.parent.name, path.name))[-1:]
    marks += [f"{path.parent.parent.name}/{path.name}" for path in newest]
    marks.append(f"{len(list(run.glob('evaluation/answers/*.json')))} answers")
    marks += [name for name in ("student", "report", "done.json") if (run / name).exists()]
    return ", ".join(marks)


if __name__ == "__main__":
    for module in EVERYTHING:
        importlib.import_module(module)
    from linearize import cli

    split = sys.argv.index("--")
    moments = json.loads(Path(sys.argv[split - 1]).read_text())
    command = sys.argv[split + 1 :]
    attempts = []
    for moment in [*moments, None]:
        status = attempt(command, moment)
        attempts.append({"moment": moment, "status": status, "there": what_is_there(Path("runs/tiny"))})
        if status >= 0:
            break
    print(json.dumps(attempts))
