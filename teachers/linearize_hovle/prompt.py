"""Chat templates: conversations to one string, and images to their places in it.

The style is MPT's: each turn is a role string that ends in a newline, the message, and ``<|im_end|>`` with nothing
behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from linearize.errors import CheckpointError, DataError, did_you_mean
from linearize.protocols.conversation import IMAGE_MARK

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt.

    Attributes:
        text: image marks are still in it, where it is a question.
        is_answer: the model should learn to emit it (an answer and its end mark).
        is_markup: added tokens in it are meant; anything that a person wrote is text, whatever it spells.
    """

    text: str
    is_answer: bool = False
    is_markup: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """One chat style.

    Attributes:
        system: the system message; None leaves the system turn out altogether.
        roles: what opens a question and an answer.
        end: what closes every turn.
    """

    name: str
    system: str | None
    roles: tuple[str, str] = (f"{TURN_START}user\n", f"{TURN_START}assistant\n")
    end: str = TURN_END

    def pieces(self, turns: Sequence[tuple[str, str | None]], *, system: str | None = None) -> list[Piece]:
        """The parts of a conversation in order.

        Args:
            turns: (question, answer); an answer of None or "" leaves the turn open for the model to answer. An empty
                question is only its role string.
            system: another system message than the template's own.
        """
        system = self.system if system is None else system
        parts: list[Piece] = []
        if system is not None:
            parts += [_markup(f"{TURN_START}system\n"), Piece(system), _markup(self.end)]
        for question, answer in turns:
            parts.append(_markup(self.roles[0]))
            if question:
                parts += [Piece(question), _markup(self.end)]
            parts.append(_markup(self.roles[1]))
            if answer:
                parts += [Piece(answer, is_answer=True), Piece(self.end, is_answer=True, is_markup=True)]
        return parts

    def render(self, turns: Sequence[tuple[str, str | None]], *, system: str | None = None) -> str:
        """The whole prompt, image marks still in it."""
        return "".join(piece.text for piece in self.pieces(turns, system=system))

    def jinja(self) -> str:
        """The same style as a chat template of transformers; an image part becomes a mark on a line of its own."""
        system = "" if self.system is None else f"{TURN_START}system\n{self.system}{self.end}"
        opening = (
            f"{{% if messages[0]['role'] != 'system' %}}{{{{ {json.dumps(system, ensure_ascii=False)} }}}}{{% endif %}}"
        )
        return (
            (opening if system else "")
            + f"{{% for message in messages %}}{{{{ '{TURN_START}' + message['role'] + '\n' }}}}"
            + "{% if message['content'] is string %}{{ message['content'] }}"
            + "{% else %}{% for part in message['content'] %}"
            + f"{{% if part['type'] == 'image' %}}{{{{ '{IMAGE_MARK}\n' }}}}"
            + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
            + f"{{{{ '{self.end}' }}}}{{% endfor %}}{{% if add_generation_prompt %}}"
            + f"{{{{ {json.dumps(self.roles[1])} }}}}{{% endif %}}"
        )


def _markup(text: str) -> Piece:
    return Piece(text, is_markup=True)


TEMPLATES = {
    template.name: template
    for template in (
        Template(
            name="internlm2-chat",
            system="你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
            "是一个有用无害的人工智能助手。",
        ),
        Template(name="internlm2-chat-bare", system=None),
    )
}


def get_template(name: str) -> Template:
    """The template of that name.

    Raises:
        CheckpointError: there is none; lists those there are.
    """
    if name not in TEMPLATES:
        known = ", ".join(sorted(TEMPLATES))
        raise CheckpointError(
            f"config.json asks for prompt template '{name}'.{did_you_mean(name, TEMPLATES)} Known: {known}."
        )
    return TEMPLATES[name]


def with_image_marks(question: str, num_images: int) -> str:
    """The first question of a conversation; images without a mark go in front, each on a line of its own."""
    return question if IMAGE_MARK in question else f"{IMAGE_MARK}\n" * num_images + question


def expand_images(text: str, tiles: Sequence[int], tokens_per_tile: int) -> str:
    """Puts each image's tokens in the place of its mark.

    Args:
        tiles: number of tiles of each image, in the order of the marks.

    Raises:
        DataError: more or fewer marks than images; names both numbers.
    """
    parts = text.split(IMAGE_MARK)
    if len(parts) - 1 != len(tiles):
        raise DataError(
            f"the text holds {len(parts) - 1} {IMAGE_MARK} marks, but {len(tiles)} images came with it; "
            "each image needs its own mark"
        )
    runs = [IMAGE_START + IMAGE_CONTEXT * (tokens_per_tile * count) + IMAGE_END for count in tiles]
    return "".join(part + run for part, run in zip(parts, [*runs, ""], strict=True))
