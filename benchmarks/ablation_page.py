"""The ablation's results as numbers, as Markdown tables, and as the measured part of a page of the documentation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

INTRODUCTION = """\
# Ablation: stages and seeding

The mmMamba paper ([arXiv 2502.13145](https://arxiv.org/abs/2502.13145)) asks which of its three stages a student needs
(Table 3) and how it should be seeded (Table 4). Here both questions are put to the embedded recipe,
`examples/mmmamba_hovle.toml`, by one command, `benchmarks/ablation.py`.

**What is held equal.** The training time. Seconds per optimizer step of each stage are measured first; every row then
gets as many steps as fit into the same time, shared between its stages as the recipe shares it, and its learning-rate
schedules are stretched with it. So a row that leaves a stage out spends that stage's time on the others. The batch
sizes, the peak learning rates, the optimizer and the questions are the same in every row, and so is the stream of
training data that a seed draws from. The paper gives 20,000 steps for each stage and no training times; its rows need
not have trained equally long.

**How to read it.** A row of the first table is seeded with `mimic`, a row of the second runs all stages; one row
belongs to both. "none" is the seeded student without training. Retention is the student's accuracy divided by the
teacher's on the same questions, averaged over the tasks. KL is KL(teacher || student) in nats per answer token. Values
with ± are means over the seeds and their sample standard deviation, the others are means; a seed changes fresh
parameters and training data, never the questions. "Seconds" are those that training took, so they show how well the
time was held equal. The recipe's peak learning rates are used for every row, though another row might do better with
others.

**What the paper found**, with HoVLE of 2.6 billion parameters:

| stages (Table 3) | MME | POPE | TextVQA | SQA-I |
|---|---|---|---|---|
| none | no score | no score | no score | no score |
| 1 | 969.8 | 70.6 | 13.47 | 40.8 |
| 2 | 1007.1 | 72.9 | 25.5 | 52.1 |
| 3 | 1188.4 | 83.0 | 40.0 | 63.4 |
| 1+2 | 1108.9 | 75.3 | 28.0 | 59.3 |
| 1+3 | 1263.1 | 84.0 | 42.5 | 77.1 |
| 2+3 | 1255.5 | 83.5 | 41.1 | 72.1 |
| 1+2+3 | 1303.5 | 85.2 | 47.7 | 79.2 |

| seeding (Table 4) | MME | POPE | TextVQA | SQA-I |
|---|---|---|---|---|
| from scratch (`scratch`) | 1214.0 | 83.1 | 40.0 | 67.4 |
| inherit W_QKV (`copy_qkv`) | 1222.6 | 84.0 | 41.9 | 73.3 |
| inherit and mimic (`mimic`) | 1303.5 | 85.2 | 47.7 | 79.2 |

## Measured here
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A cell and the content of results.json of each of its finished runs.

    Attributes:
        stages: numbers of the stages that it runs, from 1.
        steps: optimizer steps of each of these stages.
        runs: how many runs there should be.
    """

    name: str
    seeder: str
    stages: Sequence[int]
    steps: Sequence[int]
    runs: int
    results: Sequence[Mapping[str, Any]]

    def total(self, what: str) -> list[float]:
        """Tokens or seconds (``what``) of all stages, run by run; 0 where nothing is trained."""
        return [float(sum(stage[what] for stage in found["stages"])) if self.stages else 0.0 for found in self.results]

    def numbers(self) -> dict[str, Any]:
        """The row for programs."""
        return {
            "cell": self.name,
            "seeder": self.seeder,
            "steps": dict(zip(map(str, self.stages), self.steps, strict=True)),
            "runs": [
                {
                    "run": found["run"],
                    "tokens": tokens,
                    "seconds": seconds,
                    **{name: found[name] for name in ("average_retention", "kl", "top1_agreement", "tasks")},
                }
                for found, tokens, seconds in zip(
                    self.results, self.total("tokens"), self.total("seconds"), strict=True
                )
            ],
        }


def spread(values: Sequence[float | None], digits: int, factor: float = 1.0) -> str:
    """Mean ± sample standard deviation; no deviation of one value, a dash where a value is missing."""
    known = [value * factor for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    mean = f"{statistics.mean(known):,.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):,.{digits}f}"


def accuracies(results: Sequence[Mapping[str, Any]], whose: str, tasks: Sequence[str]) -> list[str]:
    """Share of right answers in each task, the mean over the runs, in percent."""
    return [f"{100 * statistics.mean(found['tasks'][task][whose] for found in results):.1f}" for task in tasks]


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, the teacher's accuracies last; shares in percent."""
    results = [found for row in rows for found in row.results]
    tasks = list(results[0]["tasks"]) if results else []
    head = ["stages", "seeding", "steps per stage", "tokens", "seconds", "average retention, %", "KL", *tasks]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        stages = "+".join(map(str, row.stages)) or "none"
        steps = " + ".join(f"{count:,}" for count in row.steps) or "0"
        if not row.results:
            cells = [stages, row.seeder, steps, "no run finished", *[""] * (len(head) - 4)]
        else:
            done = "" if len(row.results) == row.runs else f" ({len(row.results)} of {row.runs} runs)"
            cells = [stages + done, row.seeder, steps, f"{statistics.mean(row.total('tokens')):,.0f}"]
            cells += [spread(row.total("seconds"), 1)]
            cells += [spread([found["average_retention"] for found in row.results], 1, 100.0)]
            cells += [spread([found["kl"] for found in row.results], 3)]
            cells += accuracies(row.results, "student", tasks)
        lines.append(f"| {' | '.join(cells)} |")
    if results:
        teacher = accuracies(results, "teacher", tasks)
        lines.append(f"| {' | '.join(['teacher', *[''] * (len(head) - len(tasks) - 1), *teacher])} |")
    return "\n".join(lines)


def measured(rows: Sequence[Row], made: Mapping[str, Any], failures: Sequence[str]) -> str:
    """Where and how it was measured, and both tables."""
    results = [found for row in rows for found in row.results]
    stage_rows = [row for row in rows if row.name != row.seeder]
    longest = max((row.stages for row in stage_rows), key=len, default=())
    seeding_rows = [row for row in rows if row.name == row.seeder]
    seeding_rows += [row for row in stage_rows if seeding_rows and row.stages == longest == seeding_rows[0].stages]
    per_step = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in made["seconds_per_step"].items())
    questions = [task["questions"] for found in results[:1] for task in found["tasks"].values()]
    lines = [f"    {made['command']}", "", f"- {_machine(results)}"]
    lines += [f"- processes at a time: {made['parallel']}, CPU threads each: {made['threads']}; dtype {made['dtype']}"]
    lines += [f"- {_software(results)}"]
    lines += [f"- training time of every trained row: {made['seconds']:.0f} s as planned from {per_step} per step"]
    lines += [
        f"- {' or '.join(f'{n:,}' for n in sorted(set(questions))) or 'no'} questions a task, split {made['split']}"
    ]
    lines += [f"- a run failed: {failure.splitlines()[0].partition(';')[0]}" for failure in failures]
    if stage_rows:
        lines += ["", "Which stages; tasks: student's accuracy in %:", "", table(stage_rows)]
    if seeding_rows:
        lines += ["", "Which seeding; tasks: student's accuracy in %:", "", table(seeding_rows)]
    return "\n".join(lines) + "\n"


def _machine(results: Sequence[Mapping[str, Any]]) -> str:
    found = [run["environment"] for run in results]
    machines = sorted({f"{e['device']}, {e['processor']}, {e['cpus']} CPUs" for e in found})
    return " and ".join(machines) or "no run finished"


def _software(results: Sequence[Mapping[str, Any]]) -> str:
    found = [run["environment"] for run in results]
    torch = " and ".join(sorted({str(environment["packages"].get("torch")) for environment in found}))
    commits = " and ".join(sorted({str(environment["commit"]) for environment in found}))
    return f"torch {torch or 'unknown'}, linearize at commit {commits or 'unknown'}"


def page_text(before: str | None, body: str) -> str:
    """The page with a new measured part; a page that has one keeps all around it, conclusions written by hand too."""
    part = f"{BEGIN}\n\n{body}\n{END}"
    if before is not None and BEGIN in before and END in before:
        return before[: before.index(BEGIN)] + part + before[before.index(END) + len(END) :]
    return f"{INTRODUCTION}\n{part}\n"


def write_outcome(
    rows: Sequence[Row], made: Mapping[str, Any], failures: Sequence[str], out: Path, page: Path | None
) -> None:
    """Prints the tables, writes them to ``out``/ablation.md and their numbers to ablation.json, and the page if any."""
    body = measured(rows, made, failures)
    numbers = {**made, "failures": list(failures), "rows": [row.numbers() for row in rows]}
    (out / "ablation.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "ablation.md").write_text(body, encoding="utf-8")
    print(body)
    if page is not None:
        before = page.read_text("utf-8") if page.exists() else None
        page.write_text(page_text(before, body), encoding="utf-8")
