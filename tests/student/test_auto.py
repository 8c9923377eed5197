"""Saved students in fresh interpreters: with the one import, with trust_remote_code, and with neither."""

from __future__ import annotations

import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from checkout import environment, python
from linearize_hovle.adapter import attention_sites
from linearize_hovle.configuration import HovleConfig, HovleEmbeddingConfig
from linearize_hovle.modeling import HovleForConditionalGeneration
from linearize_hovle.processing import HovleProcessor
from linearize_hovle.tokenization import HovleTokenizer
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from linearize.errors import CheckpointError, PluginError
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec, TeacherSpec
from linearize.protocols import AttentionSite
from linearize.student.classes import register_students, student_class
from linearize.student.convert import convert, set_linear
from linearize.student.mixers import build_mixer
from linearize.student.modeling import load_student, save_student

pytestmark = pytest.mark.slow

COMMON = """
import sys
import torch
import transformers  # which imports itself a second time later; this one is kept by who came first
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
folder = sys.argv[1]

def same_model(**options):
    model = AutoModelForImageTextToText.from_pretrained(folder, **options)
    processor = AutoProcessor.from_pretrained(folder, **options)
    expected = torch.load(folder + "/../expected.pt")
    inputs = {"input_ids": expected["ids"], "pixel_values": expected["pixels"]}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected["logits"], rtol=1e-4, atol=1e-5)
    assert AutoConfig.from_pretrained(folder, **options).model_type == "linearize_hovle"
    assert type(processor).__name__ == "HovleProcessor", type(processor)
    assert processor.tokenizer("red circle")["input_ids"] == expected["red circle"]
    return model
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid Mamba-2 student of a tiny HoVLE, with its processor, and what it answers in memory."""
    home = tmp_path_factory.mktemp("auto")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["how many red circles", "user assistant system"] * 20),
        model_prefix=str(home / "tokenizer"), vocab_size=320, model_type="bpe", byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    tokenizer = HovleTokenizer(str(home / "tokenizer.model"))
    torch.manual_seed(0)
    image_token = int(tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
    tower: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    config = HovleConfig(
        embedding_config=HovleEmbeddingConfig(**tower, patch_size=4, image_size=16, image_token_id=image_token),
        text_config=LlamaConfig(**tower),
        image_size=16,
    )
    model = HovleForConditionalGeneration(config).eval()
    spec = Plugins.discover().registry.get(MixerSpec, "mamba2")
    mixers = {site.index: build_mixer(spec, spec.config_class()(), site) for site in attention_sites(config)}
    for mixer in mixers.values():
        mixer.initialize("scratch", torch.Generator().manual_seed(1))  # type: ignore[operator]
    convert(model, attention_sites(config), mixers)
    set_linear(model, [0, 1, 3])
    save_student(model, home / "student", processor=HovleProcessor.for_model(config, tokenizer))
    ids = torch.randint(3, 200, (1, 9))
    ids[:, 2:6] = image_token
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits
    red_circle = tokenizer("red circle")["input_ids"]
    torch.save({"ids": ids, "pixels": pixels, "logits": logits, "red circle": red_circle}, home / "expected.pt")
    return home / "student"


def _python(code: str, folder: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    offline = environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    return python("-c", COMMON + code, folder, env=offline, cwd=tmp_path)


def test_one_import_makes_the_auto_classes_load_students(folder: Path, tmp_path: Path) -> None:
    done = _python(
        """
import linearize.auto
model = same_model()
assert type(model).__module__.startswith("linearize.")
assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape == (1, 5)
AutoTokenizer.from_pretrained(folder)
try:
    AutoModel.from_pretrained(folder)
except ValueError as error:
    assert "LinearizedHovleConfig" in str(error), error
else:
    raise AssertionError("AutoModel built a model without a language head")
""",
        folder,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_trust_remote_code_needs_no_import_and_without_either_nothing_loads(folder: Path, tmp_path: Path) -> None:
    done = _python(
        """
for auto in (AutoConfig, AutoModelForImageTextToText, AutoModel):
    try:
        auto.from_pretrained(folder)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise AssertionError("loaded without linearize")
assert "linearize" not in sys.modules
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__name__ == "HovleProcessor", type(processor)
model = same_model(trust_remote_code=True)
model.save_pretrained(folder + "/../again")
""",
        folder,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_what_save_pretrained_writes_loads_with_trust_remote_code(folder: Path, tmp_path: Path) -> None:
    """As Trainer saves: the code that auto_map names lies beside it, of the model and of a configuration alone."""
    student = load_student(folder)
    again = tmp_path / "checkpoint-3"
    student.save_pretrained(again)
    shutil.copy(folder.parent / "expected.pt", tmp_path)
    student.config.save_pretrained(tmp_path / "configuration")
    done = _python(
        """
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
expected = torch.load(folder + "/../expected.pt")
with torch.no_grad():
    logits = model(input_ids=expected["ids"], pixel_values=expected["pixels"]).logits
assert torch.allclose(logits, expected["logits"], rtol=0, atol=1e-4), (logits - expected["logits"]).abs().max()
model.save_pretrained(folder + "/../checkpoint-6")
config = AutoConfig.from_pretrained(folder + "/../configuration", trust_remote_code=True)
assert type(config) is type(model.config)
AutoConfig.from_pretrained(folder + "/../checkpoint-6", trust_remote_code=True)
""",
        again,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoint-6" / "modeling_linearize.py").is_file()


def test_a_student_can_be_pickled_to_another_process(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "student.pickle").write_bytes(pickle.dumps(load_student(folder)))
    done = _python(
        """
import pickle
model = pickle.load(open("student.pickle", "rb"))
expected = torch.load(folder + "/../expected.pt")
with torch.no_grad():
    logits = model(input_ids=expected["ids"], pixel_values=expected["pixels"]).logits
assert torch.allclose(logits, expected["logits"], rtol=0, atol=1e-4), (logits - expected["logits"]).abs().max()
""",
        folder,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_pipelines_and_the_server_know_students(folder: Path, tmp_path: Path) -> None:
    """The server looks a class up by its name, and what it takes in tables of names; pipelines warn by such tables."""
    pytest.importorskip("transformers.cli.serving.model_manager", exc_type=ImportError)
    done = _python(
        """
import logging
import transformers
from transformers.cli.serving.model_manager import ModelManager
from transformers.pipelines import any_to_any, pipeline

manager = ModelManager(trust_remote_code=True, device="cpu", dtype="float32")
model, processor = manager._load_model(folder + "@main"), manager._load_processor(folder + "@main")
assert type(model).__name__ == "LinearizedHovleForConditionalGeneration", type(model)
assert manager.get_model_modality(model, processor).value in ("MULTIMODAL", "VLM")
if hasattr(transformers, "AutoModelForMultimodalLM"):
    assert type(transformers.AutoModelForMultimodalLM.from_pretrained(folder)) is type(model)
    any_to_any.requires_backends = lambda *args: None  # torchvision, for videos
    told = []
    logging.getLogger("transformers").addFilter(lambda record: told.append(record.getMessage()))
    logging.getLogger("transformers.pipelines.base").addFilter(lambda record: told.append(record.getMessage()))
    for task in ("any-to-any", "image-text-to-text"):
        assert type(pipeline(task, model=folder).model) is type(model)
    assert not [text for text in told if "not supported" in text], told
""",
        folder,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_without_its_code_file_is_not_taken_for_the_teacher(folder: Path, tmp_path: Path) -> None:
    """What is left when only config.json and the weights were copied and auto_map was lost."""
    done = _python(
        """
import json, shutil
shutil.copytree(folder, "bare", ignore=shutil.ignore_patterns("*.py"))
config = json.load(open("bare/config.json"))
del config["auto_map"]
json.dump(config, open("bare/config.json", "w"))
for auto in (AutoConfig, AutoModelForImageTextToText, AutoModel):
    try:
        auto.from_pretrained("bare")
    except ValueError as error:
        assert "linearize_hovle" in str(error), error
    else:
        raise AssertionError("loaded without linearize")
""",
        folder,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_a_teacher_that_cannot_be_imported_is_warned_about(plugins: Plugins) -> None:
    broken = TeacherSpec(
        name="broken",
        build="no_such_package:X",
        source="https://example.org",
        model_types={"broken": "no_such_package:X"},
    )
    plugins.registry.registrar("broken")(broken)
    with pytest.warns(UserWarning, match="students of 'broken' models cannot be loaded: .*no_such_package"):
        register_students()


def further_models() -> dict[str, str]:
    """What an open-ended teacher gives when a student is saved or loaded."""
    return {"mistral": "transformers:MistralForCausalLM", "llama": "transformers:LlamaForSequenceClassification"}


def no_models() -> list[str]:
    return ["mistral"]


def _open_ended(plugins: Plugins, target: str) -> None:
    spec = TeacherSpec(name="open", build="none:none", source="https://example.org", model_types_from=target)
    plugins.registry.remove_owner("transformers")
    plugins.registry.registrar("open")(spec)


def test_models_that_a_teacher_does_not_list_are_made_when_they_are_asked_for(plugins: Plugins) -> None:
    _open_ended(plugins, f"{__name__}:further_models")
    assert issubclass(student_class("mistral"), MistralForCausalLM)
    # The toy teacher lists this one.
    assert issubclass(student_class("llama"), LlamaForCausalLM)
    with pytest.raises(CheckpointError, match=r"and teacher 'open' 2 more\. Install the plug-in"):
        student_class("gemma")


def test_a_function_that_gives_no_models_is_the_plug_ins_fault(plugins: Plugins) -> None:
    _open_ended(plugins, f"{__name__}:no_models")
    with pytest.raises(PluginError, match="returned a list; expected a mapping of model_type"):
        student_class("mistral")
    with pytest.warns(UserWarning, match="students of further models cannot be loaded: .*returned a list"):
        register_students()


def test_auto_classes_load_students_of_models_that_no_teacher_lists(plugins: Plugins, tmp_path: Path) -> None:
    """In a fresh interpreter, where nothing but linearize.auto has made a class."""
    config = MistralConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    site = AttentionSite(
        index=0, path="model.layers.0.self_attn", tower="language", layer=0, cache_index=0, hidden_size=32,
        num_heads=4, num_key_value_heads=2, key_dim=8, value_dim=8,
    )  # fmt: skip
    spec = plugins.registry.get(MixerSpec, "mamba2")
    mixer: Any = build_mixer(spec, spec.config_class()(), site)
    mixer.initialize("scratch", torch.Generator().manual_seed(0))
    convert(model, [site], {0: mixer})
    with torch.no_grad():
        torch.save(model(torch.arange(9)[None]).logits, tmp_path / "logits.pt")
    save_student(model, tmp_path / "student")
    done = _python(
        """
from transformers import AutoModelForCausalLM
import linearize.auto
model = AutoModelForCausalLM.from_pretrained(folder)
assert type(model).__name__ == "LinearizedMistralForCausalLM", type(model)
assert sys.modules["transformers"] is not transformers, "one import is enough now: do without the copies"
for place in (transformers, sys.modules["transformers"]):  # where `transformers serve` looks
    assert place.LinearizedMistralForCausalLM is type(model)
with torch.no_grad():
    expected = torch.load(folder + "/../logits.pt")
    torch.testing.assert_close(model(torch.arange(9)[None]).logits, expected, rtol=1e-4, atol=1e-5)
""",
        tmp_path / "student",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
