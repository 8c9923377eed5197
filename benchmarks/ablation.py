"""The paper's ablation at equal training time: which stages are run (Table 3), how the student is seeded (Table 4).

    python benchmarks/ablation.py --parallel 2 --write docs/ablation.md

A cell is a choice of stages and seeder; "none" is the seeded student without training. First each stage's seconds per
optimizer step are measured, with as many processes side by side as later; then every cell gets the steps that fill one
common time, shared between its stages as the recipe shares it. Every cell and seed is one run below --out: the same
command goes on where it stopped, finished runs are not repeated, and a run that fails leaves the others alone. Runs
compute in --out, so paths in --set are absolute.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import tomli_w
from ablation_cells import (
    Cell,
    Job,
    Table,
    all_cells,
    ask_split,
    block_times,
    jobs_of,
    recipe_of,
    scaled_stage,
    training_seconds,
)
from ablation_page import Row, write_outcome

import linearize.api
from linearize.errors import LinearizeError
from linearize.files.names import fingerprint

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION_BLOCKS = 6


def run_recipe(tables: Table, out: Path, threads: int) -> str | None:
    """Runs a recipe in a process of its own, unless it is done; returns the end of its output when it failed."""
    name = tables["run"]["name"]
    recipe, log = out / "recipes" / f"{name}.toml", out / "logs" / f"{name}.log"
    if _is_done(out / "runs" / name, tables):
        return None
    for path in (recipe, log):
        path.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(tomli_w.dumps(tables), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "linearize", "run", str(recipe)]
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(command, cwd=out, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode == 0:
        return None
    last = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-6:])
    return f"{name} failed with exit status {done.returncode}; the whole output is in {log}:\n{last}"


def _is_done(folder: Path, tables: Table) -> bool:
    try:
        return (folder / "done.json").exists() and tomllib.loads((folder / "recipe.toml").read_text("utf-8")) == tables
    except (OSError, ValueError):
        return False  # linearize will say what is wrong with the folder


def calibrate(base: Table, out: Path, arguments: argparse.Namespace) -> list[float]:
    """Seconds per optimizer step of each stage, measured once per --out folder: steps must not change on resuming.

    As many processes measure at the same time as will train at the same time; the median over all of them counts.
    """
    settings = [base[name] for name in ("run", "teacher", "student", "data", "stages")]
    key = fingerprint([settings, arguments.parallel, arguments.calibration_steps])
    stored = out / "calibration.json"
    if stored.exists():
        found = json.loads(stored.read_text("utf-8"))
        if found["key"] != key:
            raise SystemExit(f"{out} holds an ablation of another recipe or with other processes; choose another --out")
        return list(found["seconds_per_step"])
    steps = arguments.calibration_steps
    short = {**base, "evaluate": {**base["evaluate"], "benchmarks": []}}
    short["run"] = {**base["run"], "log_every": max(1, steps // CALIBRATION_BLOCKS)}
    stages = [scaled_stage(stage, steps) for stage in base["stages"]]
    names = [f"calibration-{number}" for number in range(arguments.parallel)]
    recipes = [recipe_of(short, name, "mimic", stages) for name in names]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        failures = list(pool.map(lambda tables: run_recipe(tables, out, arguments.threads), recipes))
    if any(failures):
        raise SystemExit(next(filter(None, failures)))
    per_step = []
    for number, stage in enumerate(stages):
        files = [out / "runs" / name / "stages" / f"{number + 1}-{stage['name']}" / "metrics.jsonl" for name in names]
        per_step.append(statistics.median(time for file in files for time in block_times(file.read_text("utf-8"))))
    stored.write_text(json.dumps({"key": key, "seconds_per_step": per_step}) + "\n", encoding="utf-8")
    return per_step


def run_all(jobs: Sequence[Job], out: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """Runs what is left of the jobs, --parallel at a time; returns what went wrong by the run's name."""
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(arguments.parallel) as pool:
        futures = {pool.submit(run_recipe, job.tables, out, arguments.threads): job for job in jobs}
        for number, future in enumerate(as_completed(futures), 1):
            name, failure = futures[future].name, future.result()
            if failure is not None:
                failures[name] = failure
            print(f"[{number}/{len(jobs)}] {failure or name}", flush=True)
    return failures


def row_of(cell: Cell, jobs: Sequence[Job], failed: Collection[str], out: Path) -> Row:
    """What those of a cell's runs found that did not fail."""
    files = [out / "runs" / job.name / "report" / "results.json" for job in jobs if job.name not in failed]
    results = [json.loads(file.read_text("utf-8")) for file in files]
    steps = [stage["steps"] for stage in jobs[0].tables["stages"]] if cell.stages else []
    return Row(cell.name, cell.seeder, [stage + 1 for stage in cell.stages], steps, len(jobs), results)


def describe(arguments: argparse.Namespace, base: Table, per_step: Sequence[float], budget: float) -> dict[str, Any]:
    """How the ablation was made, for the head of its tables."""
    return {
        "command": shlex.join(["python", "benchmarks/ablation.py", *sys.argv[1:]]),
        "dtype": base["run"]["dtype"],
        "parallel": arguments.parallel,
        "threads": arguments.threads,
        "split": arguments.split,
        "seconds": budget,
        "seconds_per_step": {stage["name"]: each for stage, each in zip(base["stages"], per_step, strict=True)},
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "examples" / "mmmamba_hovle.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as linearize run has it")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of the runs and the results")
    parser.add_argument("--cells", nargs="+", help="names of rows, such as none 2+3 scratch; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="runs per cell")
    parser.add_argument("--seconds", type=float, help="training time of every cell; default: the whole recipe's")
    parser.add_argument("--split", choices=["validation", "evaluation"], default="evaluation", help="of the questions")
    parser.add_argument("--parallel", type=int, default=1, help="processes at a time")
    parser.add_argument("--threads", type=int, help="CPU threads per process; default: an equal share of all CPUs")
    parser.add_argument("--calibration-steps", type=int, default=30, help="steps of each stage that are timed")
    parser.add_argument("--write", type=Path, help="page whose measured part is written, such as docs/ablation.md")
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.parallel, arguments.calibration_steps - 1) < 1:
        parser.error("--seeds and --parallel are at least 1, --calibration-steps at least 2")
    if arguments.seconds is not None and arguments.seconds <= 0:
        parser.error("--seconds is more than 0")
    arguments.threads = arguments.threads or max(1, (os.cpu_count() or 1) // arguments.parallel)
    return arguments


def main() -> None:
    """Calibrates, runs every cell and seed, writes and prints what they found."""
    arguments = parse()
    try:
        base = linearize.api.check(arguments.recipe, arguments.set).recipe.tables()
        ask_split(base, arguments.split)
    except LinearizeError as error:
        raise SystemExit(str(error)) from None
    base["run"]["num_threads"] = arguments.threads
    cells = all_cells(len(base["stages"]))
    unknown = sorted(set(arguments.cells or ()) - {cell.name for cell in cells})
    if unknown:
        raise SystemExit(f"no cell {', '.join(unknown)}; there are: {', '.join(cell.name for cell in cells)}")
    cells = [cell for cell in cells if not arguments.cells or cell.name in arguments.cells]
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    per_step = calibrate(base, out, arguments)
    budget = arguments.seconds or training_seconds([stage["steps"] for stage in base["stages"]], per_step)
    jobs = list(jobs_of(base, cells, arguments.seeds, per_step, budget))
    failures = run_all(jobs, out, arguments)
    rows = [row_of(cell, [job for job in jobs if job.cell == cell], failures, out) for cell in cells]
    write_outcome(rows, describe(arguments, base, per_step, budget), list(failures.values()), out, arguments.write)
    if failures:
        raise SystemExit(f"{len(failures)} of {len(jobs)} runs failed")


if __name__ == "__main__":
    main()
