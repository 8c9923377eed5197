"""Steps prepared by other processes: in order, with what they left out, and nobody stays behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from checkout import environment

from linearize.data.bad_records import BadRecordError, BadRecords
from linearize.data.workers import is_worker, prepared_by_workers
from linearize.errors import CheckpointError, DataError
from linearize.protocols import BadRecord, Batch, Conversation


class Source:
    """Leaves out each tenth conversation."""

    size = None

    def __init__(self) -> None:
        self.bad = BadRecords("cats.jsonl", max_bad=5)

    def __getitem__(self, index: int) -> Conversation:
        if index % 10 == 0:
            self.bad.add(index, BadRecordError("broken image", str(index)))
        return Conversation((), id=str(index))

    def bad_records(self) -> list[BadRecord]:
        return self.bad.records()


def batch(number: int) -> Batch:
    ids = torch.full((1, 3), number)
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids > 0, ids.to(torch.uint8))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_steps_come_in_order_with_what_was_left_out_before_them(num_workers: int) -> None:
    source, told, numbers = Source(), [], []
    assert [source[0].id, not is_worker()] == ["0", True]

    def prepare(step: int) -> list[Batch]:
        assert is_worker()
        source[step]
        return [batch(step), batch(os.getpid())]

    def found(records: Sequence[BadRecord]) -> None:
        told.append((len(numbers), [record.line for record in records]))

    with prepared_by_workers(
        prepare, range(5, 35), num_workers=num_workers, source=source, found=found
    ) as steps:  # fmt: skip
        pids = set()
        for first, second in steps:
            numbers.append(int(first.inputs["input_ids"][0, 0]))
            pids.add(int(second.inputs["input_ids"][0, 0]))
    assert numbers == list(range(5, 35))
    assert len(pids) == num_workers
    assert os.getpid() not in pids
    assert told == [(5, [10]), (15, [20]), (25, [30])]
    assert [record.line for record in source.bad_records()] == [0]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (CheckpointError("record 'x' is broken"), CheckpointError, r"^record 'x' is broken$"),
        (ZeroDivisionError("no"), DataError, r"^the samples of step 8 could not be made into batches: ZeroDivisionEr"),
    ],
)
def test_an_error_comes_at_the_turn_of_its_step_in_its_own_words(
    error: Exception, kind: type[Exception], says: str
) -> None:
    def prepare(step: int) -> list[Batch]:
        if step == 7:
            raise error
        return [batch(step)]

    seen = []

    def take_all() -> None:
        with prepared_by_workers(prepare, range(20), num_workers=2, source=Source(), found=print) as steps:
            for [one] in steps:
                seen.append(int(one.inputs["input_ids"][0, 0]))

    with pytest.raises(kind, match=says):
        take_all()
    assert seen == list(range(7))
    assert multiprocessing.active_children() == []


def test_accounts_of_copies_together_keep_to_the_limit() -> None:
    copies = [BadRecords("cats.jsonl", max_bad=2) for _ in range(2)]
    for number, copy in enumerate(copies):
        for line in (number, 7):
            copy.add(line, BadRecordError("broken image"))
    whole = BadRecords("cats.jsonl", max_bad=2)
    whole.take_over(copies[0].records())
    assert len(whole) == 2
    with pytest.raises(DataError, match="at most 2 may be"):
        whole.take_over(copies[1].records())


@pytest.mark.slow
def test_workers_end_when_the_run_is_killed(tmp_path: Path) -> None:
    code = """
        import os, time
        from linearize.data.workers import prepared_by_workers

        def prepare(step):
            open(f"{os.getpid()}.worker", "w").close()
            return []

        with prepared_by_workers(prepare, range(10**6), num_workers=2, source=None, found=print) as steps:
            for _ in steps:
                time.sleep(0.1)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment())
    deadline = time.monotonic() + 60
    while len(workers := [int(path.stem) for path in tmp_path.glob("*.worker")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.2)
