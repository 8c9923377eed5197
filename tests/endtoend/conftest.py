"""The demo recipe at a few steps a stage, run as a process and inside this one, and what of a run must be equal."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from checkout import EXAMPLES, environment

import linearize
from linearize.api import override_texts
from linearize.pipeline.display import SilentDisplay

RECIPE = EXAMPLES / "mmmamba_hovle.toml"
STAGES = {"align-new": 4, "align-mixer": 4, "distill": 5}
TINY: dict[str, Any] = {
    "run.name": "tiny",
    "run.device": "cpu",
    "run.num_threads": 1,
    "run.checkpoint_every": 2,
    "run.log_every": 1,
    **{f"stages.{name}.steps": steps for name, steps in STAGES.items()},
    **{f"stages.{name}.batch_size": 4 for name in STAGES},
    "evaluate.benchmarks.0.questions": 2,
    "evaluate.num_examples": 1,
}
UNSTABLE = ("seconds", "tokens_per_second", "memory_gib", "sha256")
"""What a clock or the machine decides, and the seal over it."""


class Told(SilentDisplay):
    """Keeps what a display would have shown."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Demo:
    """Ways to run the tiny demo, and to look at what it left."""

    recipe = RECIPE
    stages = STAGES
    tiny = TINY

    @staticmethod
    def arguments(overrides: Mapping[str, Any] | None = None) -> list[str]:
        """``run RECIPE --set ...`` as one types it."""
        texts = override_texts({**TINY, **(overrides or {})})
        return ["run", str(RECIPE), *(part for text in texts for part in ("--set", text))]

    def start(self, cwd: Path, arguments: list[str]) -> subprocess.Popen[str]:
        """``python -m linearize`` in a process of its own."""
        command = [sys.executable, "-m", "linearize", *arguments]
        return subprocess.Popen(
            command, cwd=cwd, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    @staticmethod
    def run(
        monkeypatch: pytest.MonkeyPatch, cwd: Path, overrides: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[Path, Told]:
        """The run inside this process; gives its folder and what was told."""
        monkeypatch.chdir(cwd)
        told = Told()
        result = linearize.run(RECIPE, {**TINY, **(overrides or {})}, display=told, **options)
        return cwd / result.folder, told

    @staticmethod
    def content(run: Path) -> dict[str, Any]:
        """All of a finished run that must not depend on how often it was stopped, by name."""
        found: dict[str, Any] = {}
        for name in ("model.safetensors", "config.json"):
            found[f"student/{name}"] = _sha256(run / "student" / name)
        for stage in sorted((run / "stages").iterdir()):
            newest = sorted((stage / "checkpoints").iterdir())[-1]
            for name in ("weights.safetensors", "optimizer.safetensors"):
                found[f"{stage.name}/{newest.name}/{name}"] = _sha256(newest / name)
            found[f"{stage.name}/done.json"] = _stable(json.loads((stage / "done.json").read_text()))
            lines = (stage / "metrics.jsonl").read_text().splitlines()
            found[f"{stage.name}/metrics.jsonl"] = [_stable(json.loads(line)) for line in lines]
        results = json.loads((run / "report" / "results.json").read_text())
        for name in ("tasks", "average_retention", "kl", "top1_agreement", "dials"):
            found[f"results.json {name}"] = results[name]
        for path in sorted((run / "evaluation" / "answers").iterdir()):
            found[f"answers/{path.name}"] = json.loads(path.read_text())
        return found

    @staticmethod
    def weights(run: Path, stage: int) -> Path:
        """The newest checkpoint of a stage, counted from 1."""
        [folder] = (run / "stages").glob(f"{stage}-*")
        return sorted((folder / "checkpoints").glob("step-*"))[-1]

    @staticmethod
    def unfinish(run: Path, stage: int) -> None:
        """Takes a finished run back to the moment before a stage (from 1) was called done."""
        import shutil

        for folder in (run / "student", run / "evaluation", run / "report"):
            shutil.rmtree(folder)
        (run / "done.json").unlink()
        for done in sorted((run / "stages").glob("*/done.json")):
            if int(done.parent.name[0]) >= stage:
                done.unlink()
        for folder in sorted((run / "stages").iterdir()):
            if int(folder.name[0]) > stage:
                shutil.rmtree(folder)


@pytest.fixture(scope="session")
def demo() -> Demo:
    return Demo()


@pytest.fixture(scope="session")
def reference(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that nobody stopped, made by the command line in a process of its own."""
    cwd = tmp_path_factory.mktemp("reference")
    process = demo.start(cwd, demo.arguments())
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (cwd / "output.txt").write_text(output)
    return cwd / "runs" / "tiny"


@pytest.fixture
def copy_of_reference(reference: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies the finished run to a directory of its own; gives the copy."""
    import shutil

    def copy() -> Path:
        folder = tmp_path / "runs" / "tiny"
        shutil.copytree(reference, folder)
        return folder

    return copy


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stable(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in UNSTABLE}
