"""The folder of a run: what lies where, one process at a time, and no mixing of two recipes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from linearize._version import __version__
from linearize.errors import RunError, entry_name
from linearize.files.json_file import read_json, read_sealed, write_json, write_sealed
from linearize.files.names import file_sha256
from linearize.files.whole_file import write_text

RUNS = Path("runs")
COMPARISON = "comparison.json"
"""The file that makes a folder a comparison's."""
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM})
"""What a person can put right: no room, no permission."""
FORMAT = 2
"""Of run folders and comparisons. Format 1 says no number and is read, too; format 2 adds hashes, the changes of a
recipe at work and the records that were left out."""
CHANGES_AT_WORK = ("lr", "lr_schedule", "clip")
"""Keys of a stage that may change while it is at work: they read no sample and shape no tensor."""


CHANGES_ANY_TIME = ("workers",)
"""Keys of `run` that may change whenever it is: no result depends on them."""


class ResolvedRecipe(Protocol):
    """A recipe with every default written out."""

    def to_toml(self) -> str:
        """Its text."""
        ...

    def completed(self, older: dict[str, Any]) -> dict[str, Any]:
        """Tables that an older release resolved, with the defaults of keys that it did not have."""
        ...


class RunFolder:
    """Paths below ``runs/<name>`` of the current directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.format = path / "format.json"
        self.environment = path / "environment.json"
        self.seeding = path / "seeding.json"
        self.evaluation = path / "evaluation"
        self.student = path / "student"
        self.report = path / "report"
        self.results = path / "report" / "results.json"
        self.done = path / "done.json"
        self.changes = path / "changes.json"

    def stage(self, number: int, name: str) -> Path:
        """The folder of a stage; ``number`` counts from 0, folders from 1."""
        return self.path / "stages" / f"{number + 1}-{name}"

    def finish(self, key: str) -> None:
        """Calls the run finished, and notes hashes of all that a later command would believe."""
        write_sealed(
            self.done, {"key": key, "files": {name: file_sha256(self.path / name) for name in self._results()}}
        )

    def is_whole(self) -> bool:
        """Whether the run is finished and what it made is there as it was made.

        A run that an older release finished has no hashes and is believed where its results can be read.
        """
        done = read_sealed(self.done)
        if done is None:
            return False
        files = done.get("files")
        if files is None:
            return isinstance(read_json(self.results), dict)
        try:
            return isinstance(files, dict) and all(file_sha256(self.path / name) == is_ for name, is_ in files.items())
        except OSError:
            return False

    def _results(self) -> list[str]:
        """Names of the files that the evaluation, the student and the results are read from."""
        patterns = ("evaluation/**/*.json", "student/config.json", "student/*.safetensors", "report/results.json")
        return sorted(path.relative_to(self.path).as_posix() for glob in patterns for path in self.path.glob(glob))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for this process.

        Raises:
            RunError: another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path} is in use by another linearize process. "
                    "Wait for it, stop it, or give this run another run.name"
                ) from None
            yield

    def is_locked(self) -> bool:
        """Whether some process holds the run."""
        try:
            with (self.path / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def claim(self, recipe: ResolvedRecipe) -> list[str]:
        """Writes the resolved recipe, or makes sure that the run can go on under it; returns what changed.

        Learning rate and clipping of a stage at work may change, all of a stage that has not begun, and how many
        workers there are: what is finished was made as the recipe says. A change of the first kind is kept in
        ``changes``, with its step.

        Raises:
            RunError: the folder holds a run of another recipe, and shows every difference; or a comparison.
        """
        if (self.path / COMPARISON).exists():
            raise RunError(f"{self.path} holds a comparison, not a run; give this run another run.name")
        refuse_newer(self.path, read_json(self.format))
        text = recipe.to_toml()
        if not self.recipe.exists():
            write_json(self.format, {"format": FORMAT, "linearize": __version__})
            write_text(self.recipe, text)
            return []
        try:
            before = recipe.completed(tomllib.loads(self.recipe.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunError(
                f"{self.recipe} cannot be read ({error}); start with --fresh, which keeps the old folder beside"
            ) from error
        after = tomllib.loads(text)
        changes = list(differences(before, after))
        if not changes:
            return []
        at_work = self._changed_at_work(before, after)
        if at_work is None:
            raise RunError(
                f"{self.path} holds a run of another recipe; what changed:\n"
                + "\n".join(f"  - {change}" for change in changes)
                + "\nUndo the change, give the run another run.name, or start over with --fresh, "
                f"which keeps the old folder beside.{self._what_may_change(after)}"
            )
        if at_work:
            write_json(self.changes, [*(read_json(self.changes) or []), *at_work])
        write_text(self.recipe, text)
        return changes

    def _what_may_change(self, recipe: dict[str, Any]) -> str:
        """A sentence on the stages that are not finished; "" where all are."""
        for number, stage in enumerate(recipe.get("stages", [])):
            folder = self.stage(number, entry_name(stage))
            if not (folder / "done.json").exists():
                has_begun = next(folder.glob("checkpoints/step-*"), None) is not None
                keys = (
                    f"{', '.join(CHANGES_AT_WORK)} of stage '{entry_name(stage)}', which has begun, and "
                    if has_begun
                    else ""
                )
                return f" What may change: {keys}all of a stage that has not begun"
        return ""

    def _changed_at_work(self, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The stages at work that a changed recipe changes, each with its step; None where it changes anything else."""
        old, new = before.get("stages", []), after.get("stages", [])
        if _apart_from_stages(before) != _apart_from_stages(after) or list(map(entry_name, old)) != [
            *map(entry_name, new)
        ]:
            return None
        at_work = []
        for number, (was, now) in enumerate(zip(old, new, strict=True)):
            if was == now:
                continue
            folder = self.stage(number, entry_name(now))
            steps = sorted(int(path.name[5:]) for path in folder.glob("checkpoints/step-*") if path.name[5:].isdigit())
            changed = {key for key in {**was, **now} if was.get(key) != now.get(key)}
            if (folder / "done.json").exists() or (steps and not changed <= set(CHANGES_AT_WORK)):
                return None
            if steps:
                changes = list(differences(was, now))
                at_work.append({"stage": entry_name(now), "step": steps[-1], "changes": changes})
        return at_work

    def set_aside(self) -> Path | None:
        """Renames an existing folder of a run or a comparison to the next free ``<name>.old-N``; returns where it went.

        Raises:
            RunError: it holds something else.
        """
        if not self.path.exists():
            return None
        found = {path.name for path in self.path.iterdir()} - {".lock"}
        if found and not found & {self.recipe.name, "stages", COMPARISON}:
            raise RunError(
                f"{self.path} holds no run and no comparison ({', '.join(sorted(found)[:4])}), so --fresh does not "
                "move it; choose another run.name, or move it yourself"
            )
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        os.rename(self.path, aside)
        return aside


def refuse_newer(place: Path, content: Any) -> None:
    """Makes sure that this release reads a folder whose format ``content`` says; nothing said is format 1.

    Raises:
        RunError: a newer release wrote it.
    """
    version = content.get("format", 1) if isinstance(content, dict) else 1
    if not isinstance(version, int) or version > FORMAT:
        raise RunError(
            f"{place} has format {version}; linearize {__version__} reads formats up to {FORMAT}. Update linearize, or "
            "choose another name"
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk below ``path`` into a text that says what to do.

    Raises:
        RunError: something could not be written. What stood there before is whole: a run writes beside the place first.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors raises a class of its own for every failure, and the system's number is in its text alone.
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else told and int(told[1])
        if number not in DISK_ERRORS:
            raise
        raise RunError(
            f"cannot go on writing to {path}: {error}. What was finished is whole: "
            "make room or fix the permissions and type the same command again"
        ) from error


def is_first_process() -> bool:
    """True where linearize runs alone, and in one of several processes that a launcher such as torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Every leaf in which two recipes differ, as "stages.distill.steps: was 200, now 300"."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            name = entry_name(old) if entry_name(old) == entry_name(new) else ""
            yield from differences(old, new, f"{path}.{name or number}")
    elif before != after:
        yield f"{path}: was {_shown(before)}, now {_shown(after)}"


def _shown(value: Any) -> str:
    return "absent" if value is None else repr(value)


def _apart_from_stages(recipe: dict[str, Any]) -> dict[str, Any]:
    """All of a recipe that has to stay as it is."""
    run = {key: value for key, value in recipe.get("run", {}).items() if key not in CHANGES_ANY_TIME}
    return {**recipe, "run": run, "stages": []}
