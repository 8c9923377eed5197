"""Lines in, answers out: commands, several speakers, Ctrl-C, a pipe and a terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import checkout
import pytest
from rich.console import Console
from talks import Talk

from linearize.inference.chat import Chat, cost
from linearize.inference.interrupt import first_ctrl_c_is_noted
from linearize.inference.speaker import Answer, Sampling, Speaker

QUESTION = "read the text"


class Said:
    """A chat over lines of a list, and what it wrote."""

    def __init__(self, talk: Talk, *, teacher: bool = False, is_terminal: bool = False, **options: Any) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        models = {"student": talk.student, **({"teacher": talk.teacher} if teacher else {})}
        sampling = Sampling(max_new_tokens=6)
        self.speakers = {name: Speaker(model, talk.adapter, sampling) for name, model in models.items()}
        consoles = (Console(file=self.out, width=200), Console(file=self.err, width=200))
        self.chat = Chat(self.speakers, *consoles, is_terminal, **options)

    def run(self, *lines: str | type[BaseException]) -> tuple[list[str], list[str]]:
        """The lines of the answers and of the notes."""
        left = iter([*lines, EOFError])

        def read() -> str:
            line = next(left)
            if isinstance(line, str):
                return line
            raise line

        self.chat.run(read)
        return self.out.getvalue().splitlines(), self.err.getvalue().splitlines()

    def asked(self, name: str = "student") -> list[str]:
        return [turn.question for turn in self.speakers[name].history.turns]


class PressesCtrlC(io.StringIO):
    """A screen at which someone has seen enough once the first words are there."""

    def write(self, text: str) -> int:
        if not self.getvalue() and text.strip():
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def expected_answer(talk: Talk, model: Any, questions: Iterable[str], **images: Any) -> str:
    speaker = Speaker(model, talk.adapter, Sampling(max_new_tokens=6))
    return [speaker.answer(question, **images if not number else {}).text for number, question in enumerate(questions)][
        -1
    ]


def test_student_and_teacher_answer_each_question_from_their_own_history(talk: Talk, picture: Path) -> None:
    said = Said(talk, teacher=True)
    out, err = said.run(f"/image {picture}", QUESTION, "", "how many ?")
    assert [line.partition(":")[0] for line in out] == ["student", "teacher"] * 2
    for name, model in (("student", talk.student), ("teacher", talk.teacher)):
        answers = [line.removeprefix(f"{name}: ") for line in out if line.startswith(name)]
        assert answers[0] == expected_answer(talk, model, [QUESTION], images=[talk.picture])
        assert answers[1] == expected_answer(talk, model, [QUESTION, "how many ?"], images=[talk.picture])
    assert "112 x 112 pixels) goes with the next question" in err[0]
    assert [line.split(": ")[0] for line in err[1:]] == ["student", "teacher"] * 2
    assert "tokens/s; read" in err[1]
    assert "in the state" in err[3]
    assert said.chat.num_faults == 0


def test_an_image_goes_with_one_question(talk: Talk, picture: Path) -> None:
    said = Said(talk, images=[talk.picture])
    said.run("first", f"/image '{picture}'", f"/image {picture}", "second", "third")
    assert said.asked() == ["<image>\nfirst", "<image>\n<image>\nsecond", "third"]
    assert len(said.speakers["student"].history.images) == 3


def test_the_commands(talk: Talk, picture: Path) -> None:
    said = Said(talk)
    _, err = said.run(QUESTION, f"/image {picture}", "/reset", "//slash", "/help", "/quit", "never asked")
    assert said.asked() == ["/slash"]
    assert "The conversation is forgotten." in err
    assert any(line.startswith("/image FILE") for line in err)
    assert said.chat.num_faults == 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/imagine x.png", "'/imagine x.png' is no command"),
        ("/image", "'/image' is no command"),
        ("/image no such.png", "image not found: 'no such.png'"),
        ("/image .", "'.' cannot be read: Is a directory"),
        ("what is <image> ?", "holds 1 <image> marks for 0 images"),
    ],
)
def test_what_cannot_be_done_is_told_and_the_chat_goes_on(talk: Talk, line: str, told: str) -> None:
    said = Said(talk)
    out, err = said.run(line, QUESTION)
    assert told in err[0]
    assert said.chat.num_faults == 1
    assert out == [expected_answer(talk, talk.student, [QUESTION])]


def test_a_text_model_is_shown_no_image(talk: Talk, picture: Path) -> None:
    said = Said(talk, reads_images=False)
    assert "text model and reads no images" in said.run(f"/image {picture}")[1][0]


def test_a_conversation_that_is_read_again_is_said_once(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(talk)
    speaker, answer = said.speakers["student"], Speaker.answer

    def forgetful(self: Speaker, *args: Any, **options: Any) -> Any:
        if self.history.read_S is not None:
            self.history.read_S = self.history.read_S + 1
        return answer(self, *args, **options)

    monkeypatch.setattr(type(speaker), "answer", forgetful)
    _, err = said.run(QUESTION, QUESTION, QUESTION)
    assert sum("the whole conversation was read for this answer: the prompt writes" in line for line in err) == 1


def test_ctrl_c_stops_an_answer_and_not_the_chat(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linearize.inference.speaker.SECONDS_BETWEEN_PIECES", 0.0)
    said = Said(talk, is_terminal=True)
    said.chat.answers = Console(file=PressesCtrlC(), width=200)
    said.speakers["student"].sampling = Sampling(max_new_tokens=50, temperature=3.0)
    _, err = said.run(QUESTION, KeyboardInterrupt, "how many ?")
    assert err[0].startswith("stopped; ")
    assert "Ctrl-D or /quit ends the chat." in err
    assert said.asked() == [QUESTION, "how many ?"]


def test_ctrl_c_ends_a_pipe(talk: Talk) -> None:
    with pytest.raises(KeyboardInterrupt):
        Said(talk).run(KeyboardInterrupt, QUESTION)


def test_the_second_ctrl_c_is_one_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)
    with first_ctrl_c_is_noted() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.happened
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_moves_a_cursor_reaches_no_terminal(talk: Talk) -> None:
    said = Said(talk, is_terminal=True)
    said.chat.answers = Console(file=said.out, force_terminal=True, color_system=None)
    said.chat._tell("a\x1b[2Jb\rc\n")
    assert said.out.getvalue() == "a[2Jbc\n"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer("x", 1, 57, 0, 2.04, 0.0), "1 token; read 57 tokens in 2.0 s"),
        (
            Answer("x", 11, 1, 1301, 0.0961, 0.5),
            "11 tokens, 20.0 tokens/s; read 1 token in 96 ms behind 1,301 in the state",
        ),
    ],
)
def test_what_an_answer_cost(answer: Answer, told: str) -> None:
    assert cost(answer) == told


@pytest.mark.slow
def test_a_pipe_gets_an_answer_a_line_and_the_rest_goes_to_stderr(talk: Talk, picture: Path, tmp_path: Path) -> None:
    lines = f"{QUESTION}\nhow many é ?\n/image {picture}\n{QUESTION}\n/foo\n"
    done = _chat(talk, "--image", picture, "--teacher", "--max-tokens", "6", input=lines.encode())
    out, err = done.stdout.decode("ascii").splitlines(), done.stderr.decode("ascii")
    assert done.returncode == 1  # since /foo is no command
    assert [line.partition(":")[0] for line in out] == ["student", "teacher"] * 3
    assert out[0] == "student: " + expected_answer(talk, talk.student, [QUESTION], images=[talk.picture])
    assert err.count("tokens/s; read") == 6
    assert "'/foo' is no command" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_questions_in_another_encoding_are_refused(talk: Talk) -> None:
    done = _chat(talk, input="how many \u00e9 ?\n".encode("latin-1"))
    assert done.returncode == 1
    assert b"expected questions in UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


def _chat(talk: Talk, *arguments: str | Path, input: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "linearize", "chat", str(talk.run), *map(str, arguments)]
    env = checkout.environment(PYTHONIOENCODING="ascii")
    return subprocess.run(command, input=input, capture_output=True, timeout=240, env=env)


@pytest.mark.slow
def test_at_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends_the_chat(talk: Talk) -> None:
    keyboard, screen = pty.openpty()
    command = [sys.executable, "-m", "linearize", "chat", str(talk.run), "--temperature", "9", "--max-tokens", "100000"]
    env = checkout.environment(TERM="dumb")
    process = subprocess.Popen(
        command, stdin=screen, stdout=screen, stderr=screen, env=env, start_new_session=True, preexec_fn=_take_terminal
    )
    os.close(screen)
    try:
        shown = _Screen(keyboard)
        shown.until(lambda text: text.endswith("> "))
        os.write(keyboard, b"read the text\n")
        shown.until(lambda text: len(text.partition("read the text")[2].strip()) > 10)
        os.write(keyboard, b"\x03")
        shown.until(lambda text: "stopped; " in text and text.endswith("> "))
        os.write(keyboard, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(keyboard)


def _take_terminal() -> None:
    """Makes the terminal the one whose Ctrl-C reaches this process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _Screen:
    def __init__(self, keyboard: int) -> None:
        self.keyboard, self.text = keyboard, ""

    def until(self, holds: Callable[[str], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not holds(self.text):
            assert time.monotonic() < end, self.text
            if select.select([self.keyboard], [], [], 1)[0]:
                self.text += os.read(self.keyboard, 4096).decode(errors="replace")
