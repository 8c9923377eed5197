"""The folder of a run."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from checkout import environment
from safetensors import SafetensorError

from linearize.errors import RunError
from linearize.files.run_folder import FORMAT, RunFolder, differences, disk_errors
from linearize.plugin.discovery import Plugins
from linearize.recipe.load import load_recipe

LOCK_AND_WAIT = """
import sys
from pathlib import Path
from linearize.files.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "tiny")


def test_a_run_folder_takes_the_same_recipe_again(folder: RunFolder, tables: dict[str, Any], plugins: Plugins) -> None:
    recipe = load_recipe(tables, [], plugins)
    with folder.locked():
        folder.claim(recipe)
        written = folder.recipe.read_bytes()
        folder.claim(load_recipe(tables, ["run.seed=0"], plugins))
    assert folder.recipe.read_bytes() == written


def test_a_changed_recipe_is_refused_with_every_difference(
    folder: RunFolder, tables: dict[str, Any], plugins: Plugins
) -> None:
    overrides = ["stages.1.steps=300", "student.mixer.qk_norm=true", "run.num_threads=2"]
    with folder.locked():
        folder.claim(load_recipe(tables, [], plugins))
        before = folder.recipe.read_bytes()
        with pytest.raises(RunError) as caught:
            folder.claim(load_recipe(tables, overrides, plugins))
    text = str(caught.value)
    assert "stages.distill.steps: was 3, now 300" in text
    assert "student.mixer.qk_norm: was False, now True" in text
    assert "run.num_threads: was absent, now 2" in text
    assert "--fresh" in text
    assert text.count("\n  - ") == 3
    assert folder.recipe.read_bytes() == before


def test_a_folder_of_a_newer_release_is_refused(folder: RunFolder, tables: dict[str, Any], plugins: Plugins) -> None:
    with folder.locked():
        folder.claim(load_recipe(tables, [], plugins))
        assert json.loads(folder.format.read_text())["format"] == FORMAT
        folder.format.write_text(json.dumps({"format": FORMAT + 1}))
        with pytest.raises(RunError, match=rf"has format {FORMAT + 1}; .* reads formats up to {FORMAT}\. Update"):
            folder.claim(load_recipe(tables, [], plugins))


def test_a_key_that_an_older_release_did_not_have_is_at_its_default(
    folder: RunFolder, tables: dict[str, Any], plugins: Plugins
) -> None:
    with folder.locked():
        folder.claim(load_recipe(tables, [], plugins))
        older = tomllib.loads(folder.recipe.read_text())
        del older["evaluate"]["num_examples"]
        folder.recipe.write_text(tomli_w.dumps(older))
        folder.claim(load_recipe(tables, [], plugins))
        with pytest.raises(RunError, match=r"evaluate\.num_examples: was \d+, now 7"):
            folder.claim(load_recipe(tables, ["evaluate.num_examples=7"], plugins))


def test_a_stage_may_change_as_far_as_it_has_not_been_trained(
    folder: RunFolder, tables: dict[str, Any], plugins: Plugins
) -> None:
    stage = folder.stage(0, "align")
    lr, steps = "stages.align.lr=5e-4", "stages.align.steps=7"
    with folder.locked():
        folder.claim(load_recipe(tables, [], plugins))
        assert folder.claim(load_recipe(tables, [steps], plugins)) == ["stages.align.steps: was 2, now 7"]
        (stage / "checkpoints" / "step-00000001").mkdir(parents=True)
        assert folder.claim(load_recipe(tables, [steps, lr], plugins)) == ["stages.align.lr: was 0.001, now 0.0005"]
        [change] = json.loads(folder.changes.read_text())
        assert (change["stage"], change["step"]) == ("align", 1)
        with pytest.raises(
            RunError, match=r"(?s)stages\.align\.steps: was 7, now 2.*: lr, lr_schedule, clip of stage 'align'"
        ):
            folder.claim(load_recipe(tables, [lr], plugins))
        (stage / "done.json").touch()
        with pytest.raises(RunError, match=r"(?s)stages\.align\.lr: was 0\.0005, now 0\.001.* may change: all of"):
            folder.claim(load_recipe(tables, [steps], plugins))
        last = folder.stage(1, "distill")
        last.mkdir(parents=True)
        (last / "done.json").touch()
        with pytest.raises(RunError, match=r"keeps the old folder beside\.$"):  # every stage is finished
            folder.claim(load_recipe(tables, [steps], plugins))


def test_a_recipe_in_the_folder_that_cannot_be_read_is_refused(
    folder: RunFolder, tables: dict[str, Any], plugins: Plugins
) -> None:
    with folder.locked():
        folder.recipe.write_text("run = [")
        with pytest.raises(RunError, match=r"recipe.toml cannot be read .*start with --fresh"):
            folder.claim(load_recipe(tables, [], plugins))


def test_a_second_process_is_refused_while_the_first_runs_and_let_in_after_it(folder: RunFolder) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT, str(folder.path)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=r"tiny is in use by another linearize process"), folder.locked():
            pass
        other.kill()  # not a clean exit: the lock must not outlive a killed process
    with folder.locked():
        pass


def test_folders_set_aside_get_numbers_and_keep_their_content(folder: RunFolder) -> None:
    assert folder.set_aside() is None
    for number in (1, 2):
        folder.path.mkdir(parents=True)
        (folder.path / "recipe.toml").touch()
        (folder.path / "content").write_text(str(number))
        aside = folder.set_aside()
        assert aside == folder.path.with_name(f"tiny.old-{number}")
        assert (aside / "content").read_text() == str(number)
        assert not folder.path.exists()


def test_a_folder_of_something_else_is_not_set_aside(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / ".lock").touch()
    (folder.path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds no run and no comparison \(thesis\.tex\)"):
        folder.set_aside()
    assert (folder.path / "thesis.tex").read_text() == "years of work"


def test_stage_folders_count_from_one(folder: RunFolder) -> None:
    assert folder.stage(0, "align").relative_to(folder.path) == Path("stages/1-align")


def test_differences_name_leaves_and_lists_of_other_lengths() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    after = {"a": {"b": 2, "c": [1]}, "e": 1}
    assert list(differences(before, after)) == [
        "a.b: was 1, now 2", "a.c: was [1, 2], now [1]", "d: was 1, now absent", "e: was absent, now 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["a full disk", "no permission", "a full disk, told by safetensors"],
)
def test_a_disk_that_takes_nothing_more_is_told_with_what_to_do(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(RunError, match=r"cannot go on writing to .* make room or fix the permissions and type the same"),
        disk_errors(tmp_path),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file"), SafetensorError("header too large"), OSError("odd")]
)
def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error
