"""Every kernel backend of this machine against the torch reference: errors in outputs and every gradient, and times.

    python benchmarks/backends.py --write docs/backends.md

prints Markdown tables; ``--out`` writes the same numbers as JSON, anew after each of them, so that a process which is
stopped leaves what it has. ``--merge a.json b.json`` measures nothing and joins what several processes of one machine
wrote. How errors and times are measured, and what to compare them with, is said at the top of the page that ``--write``
makes and in :mod:`backends_agreement`; the default shapes are HoVLE-2.6B's. On a CPU only the torch backend exists;
``--smoke`` makes everything small enough to try it there. Kernels compile and tune themselves for minutes at their
first call: ``--warm`` does that before anything else, in one process per backend and dtype.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from backends_agreement import DTYPES, Sizes, compare_mixer, compare_op, families_of
from backends_page import Report, measured, merged, read, write_page
from backends_timing import MIXER, OPS, SSD_BACKENDS, Bench, measurements

from linearize.files.whole_file import write_text
from linearize.ops.backends import available_backends
from linearize.ops.tuning import limit_tuning
from linearize.pipeline.environment import describe_environment


class Journal:
    """The report while it is made; a part that fails is noted and the rest goes on."""

    def __init__(self, report: Report, out: Path | None) -> None:
        self.report, self.out = report, out

    def attempt(self, part: str, what: str, call: Callable[..., list[Any]], *given: Any) -> None:
        """Adds the rows that ``call(*given)`` returns to ``part``, or its error to the failures."""
        try:
            self.report[part] += [asdict(row) for row in call(*given)]
        except Exception as error:
            # Kernels fail in their own ways, and one that does must not cost the numbers of the others.
            reason = (str(error).splitlines() or [""])[0]
            self.report["failures"].append(f"{what}: {type(error).__name__}: {reason}")
            print(f"failed: {self.report['failures'][-1]}", file=sys.stderr)
        self.save()

    def save(self) -> None:
        """Writes all so far, in one step."""
        if self.out is not None:
            write_text(self.out, json.dumps(self.report, indent=1) + "\n")


def compare_all(journal: Journal, backends: Sequence[str], arguments: argparse.Namespace, sizes: Sizes) -> None:
    """Every backend, dtype and length."""
    device = arguments.device
    for name in backends:
        families = [family for family in families_of(name) if family in arguments.ops]
        for dtype in arguments.dtypes:
            for tokens in arguments.agree_lengths:
                what = f"{name}, {dtype}, T {tokens}"
                given = name, dtype, tokens, sizes, device
                for family in families:
                    journal.attempt("agreement", f"{family} of {what}", compare_op, "carried state", family, *given)
                if MIXER in arguments.ops:
                    journal.attempt("agreement", f"mixer of {what}", compare_mixer, *given)
            for family in families if arguments.agree_lengths else ():
                given = name, dtype, max(arguments.agree_lengths), sizes, device
                journal.attempt(
                    "agreement", f"packed {family} of {name}, {dtype}", compare_op, "packed", family, *given
                )


def time_all(journal: Journal, usable: set[str], arguments: argparse.Namespace, sizes: Sizes) -> None:
    """Every operation and backend at every length."""
    bench = Bench(
        sizes, arguments.device, DTYPES[arguments.time_dtype], usable, arguments.torch_most, arguments.repeats
    )
    for tokens in arguments.time_lengths:
        for op, backend, measure in measurements(tokens, bench, arguments.ops):
            journal.attempt("times", f"{op} of {backend}, T {tokens}", measure)


def warm(arguments: argparse.Namespace, backends: Sequence[str]) -> None:
    """Compiles and tunes every kernel once, in parallel processes that share the kernel cache on disk."""
    shapes = [f"--{name}={getattr(arguments, name)}" for name in ("heads", "groups", "hidden")]
    command = [sys.executable, __file__, *shapes, f"--head-dim={arguments.head_dim}", f"--device={arguments.device}"]
    command += ["--agree-lengths", "200", "--time-lengths", "--ops", *arguments.ops]
    command += ["--few-tunings"] * arguments.few_tunings
    runs = [
        subprocess.Popen([*command, "--backends", name, "--dtypes", dtype], stdout=subprocess.DEVNULL)
        for name in backends
        for dtype in arguments.dtypes
    ]
    for run in runs:
        run.wait()


def parse() -> argparse.Namespace:
    """The command line; --smoke fills in small sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backends", nargs="*", default=list(SSD_BACKENDS), help="recurrence backends to use")
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=list(DTYPES), help="of the inputs")
    parser.add_argument("--ops", nargs="*", choices=OPS, default=list(OPS), help="what to compare and to time")
    parser.add_argument(
        "--few-tunings", action="store_true", help="kernels try few configurations: errors in minutes, times worthless"
    )
    parser.add_argument("--time-dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--groups", type=int, default=8, help="key-value heads")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--agree-lengths", type=int, nargs="*", default=[1, 63, 64, 65, 200], help="tokens")
    parser.add_argument("--time-lengths", type=int, nargs="*", default=[2048, 8192, 32768, 105472], help="tokens")
    parser.add_argument("--torch-most", type=int, default=8192, help="longest length at which the reference is timed")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls; the median counts")
    parser.add_argument("--warm", action="store_true", help="compile and tune kernels in parallel processes first")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, fp32 times: for a CPU")
    parser.add_argument("--commit", help="of the measured checkout, where git cannot tell")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="JSON", help="join these instead of measuring")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown page to write")
    arguments = parser.parse_args()
    if arguments.few_tunings and arguments.time_lengths:
        parser.error("--few-tunings gives worthless times: say --time-lengths without any, too")
    if arguments.smoke:
        small: dict[str, Any] = {"heads": 4, "groups": 2, "head_dim": 8, "hidden": 16, "repeats": 1}
        small |= {"agree_lengths": [1, 5, 65], "time_lengths": [64], "time_dtype": "fp32"}
        for name, value in small.items():
            setattr(arguments, name, value)
    return arguments


def measure(arguments: argparse.Namespace) -> Journal:
    """Compares and times what this machine has."""
    if arguments.few_tunings:
        limit_tuning()
    device = arguments.device
    sizes = Sizes(arguments.heads, arguments.groups, arguments.head_dim, arguments.hidden)
    backends = available_backends(device)
    wanted = [name for name in SSD_BACKENDS if not backends[name] and name in arguments.backends]
    if arguments.warm:
        warm(arguments, [name for name in wanted if name != "torch"])
    # The reference has to be fp32 throughout, or its own rounding would pass for the backends'.
    torch.backends.cuda.matmul.allow_tf32 = False
    report: Report = {
        "command": command_line(sys.argv[1:]),
        "environment": describe_environment(torch.device(device)),
        "sizes": asdict(sizes),
        "time_dtype": arguments.time_dtype,
        "backends": backends,
        "agreement": [],
        "times": [],
        "failures": [],
    }
    journal = Journal(report, arguments.out)
    compare_all(journal, wanted, arguments, sizes)
    usable = {name for name, reason in backends.items() if not reason} - (set(SSD_BACKENDS) - set(wanted))
    time_all(journal, usable, arguments, sizes)
    return journal


def command_line(words: Sequence[str]) -> str:
    """The command for the page, without the options that say where results go or what is known of the checkout."""
    kept, skip = [], False
    for word in words:
        if not skip and word not in ("--out", "--write", "--commit"):
            kept.append(word)
        skip = not skip and word in ("--out", "--write", "--commit")
    return shlex.join(["python", "benchmarks/backends.py", *kept])


def main() -> None:
    """Measures or merges; says what it found, and fails when a part of it failed."""
    arguments = parse()
    if arguments.merge:
        journal = Journal(merged([read(path) for path in arguments.merge]), arguments.out)
    else:
        journal = measure(arguments)
    report = journal.report
    if arguments.commit:
        report["environment"]["commit"] = arguments.commit
    journal.save()
    print(measured(report))
    if arguments.write:
        write_page(report, arguments.write)
    if report["failures"]:
        raise SystemExit(f"{len(report['failures'])} parts failed; the first: {report['failures'][0]}")


if __name__ == "__main__":
    main()
