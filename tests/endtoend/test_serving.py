"""`transformers serve`, the OpenAI-compatible server that transformers ships, serves students to ordinary clients."""

from __future__ import annotations

import base64
import io
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import DOCS, ROOT, environment
from linearize_transformers.adapter import TransformersAdapter
from linearize_transformers.config import TransformersTeacherConfig
from linearize_transformers.support import FAMILIES
from PIL import Image
from talks import make_run
from transformers import AutoProcessor

import linearize
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec
from linearize.student.convert import convert
from linearize.student.mixers import build_mixer
from linearize.student.modeling import save_student

sys.path.append(str(ROOT / "tests" / "teachers" / "transformers"))

pytestmark = pytest.mark.slow
openai = pytest.importorskip("openai", reason="the server needs linearize[serve]")
pytest.importorskip("fastapi", reason="the server needs linearize[serve]")
pytest.importorskip("uvicorn", reason="the server needs linearize[serve]")

PAGE = (DOCS / "serve.md").read_text(encoding="utf-8")
[COMMAND] = re.findall(r"^transformers serve .*$", PAGE, re.MULTILINE)
SECONDS_TO_START = 400


@dataclass(frozen=True)
class Served:
    """A student's folder behind a server, and a client of it."""

    folder: Path
    client: Any

    def ask(self, content: Any, **options: Any) -> Any:
        messages = [{"role": "user", "content": content}]
        return self.client.chat.completions.create(
            model=str(self.folder), messages=messages, max_tokens=8, temperature=0, **options
        )

    def expected(self, content: Any, *images: Image.Image) -> str:
        """What the same model answers here."""
        model, processor = linearize.load_student(self.folder), AutoProcessor.from_pretrained(self.folder)
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        pictures = {"images": list(images)} if images else {}
        inputs = processor(text=prompt, return_tensors="pt", **pictures)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        text: str = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text


def serve(folder: Path, log: Path) -> Iterator[Served]:
    """The server of the documented command, on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, *arguments = shlex.split(COMMAND)
    assert program == "transformers"
    arguments = [str(folder) if part.startswith("runs/") else part for part in arguments]
    command = [sys.executable, "-m", "transformers.cli.transformers", *arguments, "--host", "127.0.0.1"]
    local = {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=environment(**local), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        _wait(port, process, log)
        yield Served(folder, client)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) is not None
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server listens, which it does once it has loaded its model."""
    end = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A student of a vision-language model."""
    place = tmp_path_factory.mktemp("served")
    yield from serve(make_run(place / "demo") / "student", place / "log.txt")


def test_a_client_gets_the_student_s_answer_at_once_and_in_pieces(served: Served) -> None:
    question = "read the text"
    expected = served.expected(question)
    answer = served.ask(question)
    assert answer.choices[0].message.content == expected
    chunks = list(served.ask(question, stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == expected
    assert len(pieces) > 1
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_a_client_shows_it_an_image(served: Served) -> None:
    image, file = Image.effect_mandelbrot((112, 112), (-2, -1.5, 1, 1.5), 20).convert("RGB"), io.BytesIO()
    image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    words = {"type": "text", "text": "read the text"}
    asked = [{"type": "image_url", "image_url": {"url": url}}, words]
    answer = served.ask(asked)
    assert answer.choices[0].message.content == served.expected([{"type": "image"}, words], image)
    assert answer.usage.prompt_tokens > served.ask("read the text").usage.prompt_tokens
    streamed = served.ask(asked, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == answer.choices[0].message.content


def make_llama(place: Path) -> Path:
    """A student of a tiny Llama whose answers are words."""
    from checkpoints import make_checkpoint

    family = next(family for family in FAMILIES if family.model_type == "llama")
    adapter = TransformersAdapter(TransformersTeacherConfig(checkpoint=str(make_checkpoint(family, place / "teacher"))))
    model, tokenizer = adapter.load(dtype=torch.float32, device="cpu"), adapter.processor()
    spec = Plugins.discover().registry.get(MixerSpec, "mamba2")
    mixers = {site.index: build_mixer(spec, spec.config_class()(), site) for site in adapter.sites()}
    for number, mixer in mixers.items():
        mixer.initialize("scratch", torch.Generator().manual_seed(number))  # type: ignore[operator]
    convert(model, adapter.sites(), mixers)
    tokens = tokenizer.convert_ids_to_tokens(range(model.config.vocab_size))
    model.generation_config.suppress_tokens = [
        number for number, token in enumerate(tokens) if not re.fullmatch("Ġ?[a-z]+", token or "")
    ]
    save_student(model, place / "student", tokenizer)
    return place / "student"


def test_a_client_asks_a_language_model(tmp_path: Path) -> None:
    for served in serve(make_llama(tmp_path), tmp_path / "log.txt"):
        question = "how many green triangles are there"
        expected = served.expected(question)
        assert served.ask(question).choices[0].message.content == expected
        assert "".join(chunk.choices[0].delta.content or "" for chunk in served.ask(question, stream=True)) == expected
