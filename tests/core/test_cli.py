"""The command line as a user types it: output, exit status, no traceback."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import checkout
import pytest
import tomli_w
from typer.testing import CliRunner

import linearize
import linearize.api
from linearize.cli.app import app

Write = Callable[[str, str], Path]


@pytest.fixture
def recipe(write: Write, tables: dict[str, object]) -> Path:
    return write("tiny.toml", tomli_w.dumps(tables))


def invoke(arguments: Sequence[str]) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_commands_are_these(tmp_path: Path) -> None:
    code, out, _ = invoke(["--help"])
    assert code == 0
    listed = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    wanted = {"run", "compare", "bench", "check", "plan", "plugins", "report", "data", "new", "chat"}
    assert set(listed) & wanted == wanted


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "--help"], ["run", "--help"], ["bench", "--help"], ["chat", "--help"]]
)
def test_help_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    imported = checkout.imported_by(*arguments, cwd=tmp_path)
    assert imported & {"torch", "transformers", "PIL", "matplotlib"} == set()


def test_a_checkout_that_is_not_installed_runs_as_a_module(tmp_path: Path) -> None:
    done = checkout.linearize("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"linearize {linearize.__version__}\n")


def test_a_right_recipe_is_ok_in_one_line(recipe: Path) -> None:
    code, out, err = invoke(["check", str(recipe)])
    assert (code, err) == (0, "")
    assert out.startswith(f"{recipe} is OK: ")
    assert out.endswith("stages: align, distill\n")


def test_a_wrong_recipe_is_told_on_stderr_with_status_1_and_no_traceback(recipe: Path, tmp_path: Path) -> None:
    done = checkout.linearize(
        "check", str(recipe), "--set", "stages.0.stpes=1", "--set", "data.type=glanze", cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"{recipe} has problems:\n  - stages.align.stpes: unknown key; got 1. Did you mean 'steps'?"
    )
    assert "data.type: unknown data 'glanze'. Did you mean 'glance'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_refuses_a_wrong_recipe_before_it_makes_a_folder(recipe: Path, tmp_path: Path) -> None:
    done = checkout.linearize("run", str(recipe), "--set", "stages.0.steps=-1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "stages.align.steps: Input should be greater than or equal to 0; got -1" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments", [["walk"], ["run"], ["check", "a.toml", "--sett", "x=1"], ["data", "export", "a.toml"]]
)
def test_wrong_usage_has_status_2(arguments: list[str]) -> None:
    assert invoke(arguments)[0] == 2


@pytest.mark.parametrize(
    "arguments", [["--lengths", "64", "2048", "x"], ["x", "--lengths", "64,", "2048"], ["--lengths", "64,2048", "x"]]
)
def test_numbers_in_a_row_are_those_of_their_option(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(linearize.api, "bench", lambda targets, options, **_: asked.append((targets, options.lengths)))
    invoke(["bench", *arguments])
    assert asked == [(["x"], [64, 2048])]


def test_a_target_that_is_none_is_told_in_one_line() -> None:
    code, out, err = invoke(["bench", "nothing"])
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("'nothing' is neither a folder nor a teacher.")


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, out, err = invoke(["plan", str(tmp_path / "nothing.toml")])
    assert (code, out) == (1, "")
    assert err == f"nothing.toml has problems:\n  - there is no such file in {tmp_path}.\n"


def test_a_report_of_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    code, _, err = invoke(["report", str(tmp_path / "nothing")])
    assert code == 1
    assert "there is no such run folder" in err


def test_a_report_that_cannot_be_written_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that somebody else mounted read-only."""
    run = tmp_path / "runs" / "old"
    shutil.copytree(checkout.FIXTURES / "run_folder" / "runs" / "old", run)

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("linearize.files.whole_file.flush", refuse)
    code, _, err = invoke(["report", str(run)])
    assert code == 1
    assert err.startswith(
        f"cannot write {run / 'report' / 'results.json'}: [Errno {errno.EROFS}] Read-only file system"
    )
    assert "Make room or fix the permissions" in err
    assert "Traceback" not in err


def test_plugins_are_listed_for_people_and_for_programs() -> None:
    _, table, _ = invoke(["plugins"])
    assert "mamba2" in table
    assert "layer_mse" in table
    _, out, _ = invoke(["plugins", "--json"])
    listed = {plugin["name"]: plugin for plugin in json.loads(out)}
    assert {"core", "hovle", "mamba2", "mmmamba", "glance"} <= set(listed)
    assert set(listed["core"]) == {"name", "origin", "version", "failure", "components"}
    assert set(listed["core"]["components"][0]) == {"kind", "name", "summary", "source"}


def test_a_broken_plugin_is_listed_with_its_reason(tmp_path: Path) -> None:
    metadata = tmp_path / "stranger-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 2.0\n")
    (metadata / "entry_points.txt").write_text("[linearize]\nstranger = linearize_stranger\n")
    (tmp_path / "linearize_stranger.py").write_text("import a_kernel_library_that_is_not_there\n")
    done = checkout.linearize("plugins", "--json", env=checkout.environment(tmp_path))
    assert done.returncode == 0, done.stderr
    stranger = next(plugin for plugin in json.loads(done.stdout) if plugin["name"] == "stranger")
    assert (stranger["origin"], stranger["version"], stranger["components"]) == ("stranger", "2.0", [])
    assert stranger["failure"] == "ModuleNotFoundError: No module named 'a_kernel_library_that_is_not_there'"


def test_exported_conversations_are_as_many_as_asked_for(recipe: Path, tmp_path: Path) -> None:
    code, out, err = invoke(["data", "export", str(recipe), "--count", "3", "--to", str(tmp_path / "files")])
    assert (code, err) == (0, "")
    records = (tmp_path / "files" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(records) == 3
    assert "3 conversations with " in out
    code, _, err = invoke(["data", "export", str(recipe), "--count", "3", "--to", str(tmp_path / "files")])
    assert code == 1
    assert "exists and is not an empty folder" in err


def test_ctrl_c_says_how_to_go_on_and_has_status_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.argv = ['linearize', 'run', 'a.toml']\n"
        # A shell that starts tests in the background lets them ignore Ctrl-C, and a child inherits that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from linearize import api, cli\n"
        "def interrupted(*args, **kwargs):\n    os.kill(os.getpid(), signal.SIGINT)\n    signal.pause()\n"
        "api.run = interrupted\ncli.main()"
    )
    done = checkout.python("-c", code, cwd=tmp_path)
    assert done.returncode == 128 + signal.SIGINT
    assert "Interrupted. Type the same command to go on" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_of_a_comparison_tells_what_no_student_of_the_teacher_can_do(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from linearize_hovle.adapter import HovleAdapter

    questions = 'evaluate.benchmarks=[{ type = "glance", questions = 2 }]'
    arguments = ["compare", str(recipe), "--mixer", "mamba2", "--set", questions, "--dry-run"]
    code, out, _ = invoke(arguments)
    assert (code, "warning" in out) == (0, False)
    monkeypatch.setattr(HovleAdapter, "caveats", lambda _: ["it reads both ways"], raising=False)
    code, out, _ = invoke(arguments)
    assert (code, out.count("warning: it reads both ways")) == (0, 1)
    assert out.index("1 cell") < out.index("warning: ")


def test_checking_imports_no_model_code_and_planning_makes_no_pixels(recipe: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from linearize import api\n"
        "checked = api.check(sys.argv[1], ['teacher.checkpoint=embedded'])\n"
        "costly = {'transformers.modeling_utils', 'transformers.processing_utils', 'datasets'}\n"
        "assert not costly & sys.modules.keys(), costly & sys.modules.keys()\n"
        "type(checked.adapter).batch = None\n"
        "assert all(stage.tokens > 0 for stage in checked.with_tokens().plan.stages)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_garbage_is_collected_again_after_a_short_command(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = []
    check = linearize.api.check
    monkeypatch.setattr(linearize.api, "check", lambda *args: (collected.append(gc.isenabled()), check(*args))[1])
    assert invoke(["check", str(recipe)])[0] == 0
    assert (collected, gc.isenabled()) == ([False], True)
