"""What one or several processes measured, as Markdown tables and as the measured part of a page of the docs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Report = dict[str, Any]

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ORDER = ("sdpa", "torch", "fla", "mamba_ssm", "causal_conv1d")
KEYS = {
    "agreement": ("level", "backend", "dtype", "case", "tokens"),
    "times": ("op", "backend", "tokens"),
}
SAME = ("device", "python", "linearize")

INTRODUCTION = """\
# Kernel backends

The plain torch code in `linearize/ops` defines every recurrence and convolution; fla, mamba_ssm and causal_conv1d are
faster ways to the same numbers, chosen by `backend` and `conv_backend` of a mixer. This page says how far each is from
the definition, and what it costs. `benchmarks/backends.py` measures both; `tests/gpu` asks the same of a machine as
tests.

**How errors are measured.** The wanted numbers are those of the torch backend in fp32, without TF32, computed from the
same inputs and weights, already rounded to the dtype in question. An error is the norm of the difference over the norm
of the wanted tensor. "Output" and "state" are the results of a call that goes on from a carried state; "worst gradient"
is the largest error among the gradients of all inputs and parameters, of one fixed random mixture of output and state,
with the name of whose it is. The name of a recurrence ("op": Mamba-2's) stands for that alone, "mixer" for the whole
Mamba-2 layer with its projections, convolution, norm and gate, with a left-padded row in the batch. **The rows of the
torch backend in bf16 are the yardstick**: they hold no kernel and show what rounding to bf16 alone costs; a kernel with
like numbers is as exact as bf16 allows.

A Mamba-2 layer can be set so that this comparison says nothing: with time steps so large that the state forgets at
once, an output is little but its own value times one number, which the norm after it takes out again. Its gradients for
q and k are then small differences of large terms, and torch in bf16 misses them by a fifth of their norm. The mixer
compared here has time steps between 0.001 and 0.1 instead, as mmMamba's seeding draws them.

With `--few-tunings` a kernel tries three of the dozens of configurations that it could take: errors come in minutes,
and say nothing of the configurations that were not tried. Times are measured without it.

**How times are measured.** The median wall time of calls with the GPU waited for, after two that are not counted, batch
1, no other process on the GPU. "Forward" is without gradients; "both" is a forward with its backward. Softmax attention
is torch's `scaled_dot_product_attention`, causal, with the same shared key-value heads.

## Measured
"""


def merged(reports: Sequence[Report]) -> Report:
    """One report of the results of several processes; where two have the same row, the later one's counts.

    Raises:
        SystemExit: they were not made on one kind of machine with one set of packages.
    """
    first = reports[0]
    for report in reports[1:]:
        for name in ("sizes", *SAME, "packages"):
            here, there = ((r if name == "sizes" else r["environment"])[name] for r in (first, report))
            if here != there:
                raise SystemExit(
                    f"these results do not belong together: {name} is {here} in the first, {there} in "
                    f"'{report['command']}'. Merge only what one machine measured."
                )
    result = {**first, "command": "\n".join(dict.fromkeys(report["command"] for report in reports))}
    result["failures"] = list(dict.fromkeys(failure for report in reports for failure in report["failures"]))
    for part, keys in KEYS.items():
        rows = {tuple(row[key] for key in keys): row for report in reports for row in report[part]}
        result[part] = list(rows.values())
    return result


def measured(report: Report) -> str:
    """Where and how it was measured, and both tables."""
    found = report["environment"]
    packages = ("torch", "triton", "flash-linear-attention", "mamba-ssm", "causal-conv1d")
    versions = [f"{name} {found['packages'][name]}" for name in packages if name in found["packages"]]
    sizes = report["sizes"]
    lines = [f"    {command}" for command in report["command"].splitlines()]
    lines += ["", f"- {found['device']}; {found['processor']}, {found['cpus']} CPUs; Python {found['python']}"]
    lines += [f"- {', '.join(versions)}; linearize at commit {found['commit'] or 'unknown'}"]
    lines += [
        f"- {sizes['heads']} heads, {sizes['groups']} key-value heads, head_dim {sizes['head_dim']}, "
        f"hidden size {sizes['hidden']}"
    ]
    lines += [f"- backend {name}: {reason or 'usable'}" for name, reason in report["backends"].items()]
    lines += [f"- failed: {failure}" for failure in report["failures"]]
    if report["agreement"]:
        lines += ["", "Relative errors in the norm:", "", agreement_table(report["agreement"])]
    if report["times"]:
        lines += ["", f"Milliseconds, forward / both, {report['time_dtype']}:", "", time_table(report["times"])]
    return "\n".join(lines) + "\n"


def agreement_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Cases one after the other, in each the backends below one another; without the reference itself."""
    lines = ["| level | case | T | inputs | backend | output | state | worst gradient |", "|" + "---|" * 8]
    rows = [row for row in rows if (row["backend"], row["dtype"]) != ("torch", "fp32")]
    cases = list(dict.fromkeys((row["level"], row["case"]) for row in rows))

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return cases.index((row["level"], row["case"])), row["tokens"], row["dtype"], ORDER.index(row["backend"])

    for row in sorted(rows, key=place):
        cells = [row["level"], row["case"], row["tokens"], row["dtype"], row["backend"]]
        cells += [f"{row['output']:.1e}", f"{row['state']:.1e}"]
        cells += [f"{row['gradient']:.1e} ({row['worst_gradient']})" if row["worst_gradient"] else ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def time_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row for each operation and backend, one column for each length."""
    lengths = sorted({row["tokens"] for row in rows})
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        text = f"{row['forward_ms']:.2f} / {row['both_ms']:.2f}"
        cells.setdefault((row["op"], row["backend"]), {})[row["tokens"]] = text
    ops = list(dict.fromkeys(op for op, _ in cells))
    lines = ["| op | backend | " + " | ".join(f"T {length:,}" for length in lengths) + " |"]
    lines += ["|" + "---|" * (2 + len(lengths))]
    for names in sorted(cells, key=lambda names: (ops.index(names[0]), ORDER.index(names[1]))):
        texts = (cells[names].get(length, "") for length in lengths)
        lines.append("| " + " | ".join([*names, *texts]) + " |")
    return "\n".join(lines)


def write_page(report: Report, page: Path) -> None:
    """Writes the page; one that has a measured part already keeps all around it, conclusions written by hand too."""
    part = f"{BEGIN}\n\n{measured(report)}\n{END}"
    before = page.read_text("utf-8") if page.exists() else ""
    if BEGIN in before and END in before:
        text = before[: before.index(BEGIN)] + part + before[before.index(END) + len(END) :]
    else:
        text = f"{INTRODUCTION}\n{part}\n"
    page.write_text(text, encoding="utf-8")


def read(path: Path) -> Report:
    """What a process wrote."""
    report: Report = json.loads(path.read_text("utf-8"))
    return report
