"""The talk itself: lines come in, answers go out as they grow; at a terminal, or through pipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from linearize.data.images import read_image
from linearize.errors import DataError, LinearizeError
from linearize.inference.interrupt import Interrupt, first_ctrl_c_is_noted
from linearize.wording import counted, duration

if TYPE_CHECKING:
    from PIL.Image import Image

    from linearize.inference.speaker import Answer, Speaker

HELP = """/image FILE   show an image with the next question; may be repeated
/reset        forget the conversation
/quit         end the chat, as Ctrl-D does
Ctrl-C stops an answer. A line that begins with // is a question that begins with /."""
PROMPT = "> "
CONTROLS = {number: None for number in (*range(32), 127, *range(128, 160)) if chr(number) not in "\n\t"}
"""What could move the cursor of a terminal."""


def open_image(file: str | Path) -> Image:
    """The picture in a file, as RGB.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = Path(file).expanduser()
    return read_image(path, f"'{path}'")


@dataclass(slots=True)
class Chat:
    """A conversation of one person with one model or several, each of which remembers its own answers.

    Args:
        speakers: by the names that they are shown under.
        answers: where answers go. notes: where all else goes.
        is_terminal: whether someone sits there: questions are prompted for, and Ctrl-C stops an answer alone.
        images: that go with the first question.
        reads_images: whether the models do.

    Attributes:
        num_faults: lines that could not be done.
    """

    speakers: dict[str, Speaker]
    answers: Console
    notes: Console
    is_terminal: bool
    images: list[Image] = field(default_factory=list)
    reads_images: bool = True
    num_faults: int = 0
    _told_again: set[str] = field(default_factory=set)

    def run(self, read_line: Callable[[], str]) -> None:
        """Answers line after line.

        Args:
            read_line: gives the next line; raises EOFError where there is none.
        """
        while True:
            try:
                line = read_line().strip()
            except EOFError:
                if self.is_terminal:
                    self.answers.print()
                return
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                self.answers.print()
                self._note("Ctrl-D or /quit ends the chat.")
                continue
            if line == "/quit":
                return
            try:
                self._do(line)
            except LinearizeError as error:
                self.num_faults += 1
                self.notes.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)

    def _do(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if not line:
            return
        if not line.startswith("/") or line.startswith("//"):
            self._ask(line.removeprefix("/") if line.startswith("//") else line)
        elif command == "/image" and rest.strip():
            self._show(rest.strip())
        elif line == "/reset":
            self.images.clear()
            for speaker in self.speakers.values():
                speaker.reset()
            self._note("The conversation is forgotten.")
        elif line == "/help":
            self._note(HELP)
        else:
            raise DataError(f"'{line}' is no command. There are:\n{HELP}")

    def _show(self, name: str) -> None:
        if not self.reads_images:
            raise DataError("the model is a text model and reads no images")
        image = open_image(name[1:-1] if name[0] == name[-1] and name[0] in "'\"" and len(name) > 2 else name)
        self.images.append(image)
        self._note(f"{name} ({image.width} x {image.height} pixels) goes with the next question.")

    def _ask(self, question: str) -> None:
        images = list(self.images)
        for name, speaker in self.speakers.items():
            if len(self.speakers) > 1:
                self.answers.out(f"{name}: ", end="", style="bold", highlight=False)
            self._answer(name, speaker, question, images)
        self.images.clear()

    def _answer(self, name: str, speaker: Speaker, question: str, images: Sequence[Image]) -> None:
        interrupt = Interrupt()
        try:
            if self.is_terminal:
                with first_ctrl_c_is_noted() as interrupt:
                    answer = speaker.answer(question, images, tell=self._tell, stopped=lambda: interrupt.happened)
            else:
                answer = speaker.answer(question, images, tell=self._tell)
        except KeyboardInterrupt:
            if not self.is_terminal:
                raise
            self.answers.print()
            self._note("Stopped; this question is no part of the conversation.")
            return
        self.answers.print()
        who = f"{name}: " if len(self.speakers) > 1 else ""
        self._note(who + ("stopped; " if interrupt.happened else "") + cost(answer))
        if answer.read_again and name not in self._told_again:
            self._told_again.add(name)
            self._note(
                f"{who}the whole conversation was read for this answer: {answer.read_again}. This may happen at any "
                "turn, and is said once."
            )

    def _tell(self, piece: str) -> None:
        self.answers.out(piece.translate(CONTROLS) if self.answers.is_terminal else piece, end="", highlight=False)

    def _note(self, text: str) -> None:
        self.notes.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def cost(answer: Answer) -> str:
    """ "14 tokens, 31.0 tokens/s; read 57 tokens in 210 ms behind 301 in the state"."""
    speed = answer.tokens_per_second
    written = counted(answer.num_tokens, "token") + ("" if speed is None else f", {speed:,.1f} tokens/s")
    seconds = answer.read_seconds
    time = f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)
    read = f"read {counted(answer.num_read, 'token')} in {time}"
    return f"{written}; {read}" + (f" behind {answer.num_kept:,} in the state" if answer.num_kept else "")


def terminal_line() -> str:
    """The next line that someone types, with the keys that shells have for editing.

    Raises:
        EOFError: Ctrl-D.
    """
    import readline  # noqa: F401  input() edits lines where this is imported

    return input(PROMPT)


def piped_line() -> str:
    """The next line of standard input, which is UTF-8.

    Raises:
        EOFError: there is none.
        DataError: it is something else.
    """
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise DataError(f"expected questions in UTF-8, got other bytes ({error.reason}); convert them") from None
    if not line:
        raise EOFError
    return line
