"""Trains the small HoVLE that ships inside linearize_hovle, on the drawn tasks of linearize_glance.

    python teachers/train_embedded_hovle.py --out embedded --compile      # a GPU, about 15 CPU cores, 9 minutes
    python teachers/train_embedded_hovle.py --out teacher-25m --compile --hidden-size 512 --heads 8 --kv-heads 4 \
        --mlp-size 1024 --layers 2 8 --lr 6e-4      # the teacher of examples/compare_mixers_gpu.toml

The folder that comes out is a HoVLE checkpoint in the published layout: config.json, tokenizer.model, bfloat16
weights, and a README.md (the model card) with its accuracy on fresh questions. Training draws from glance's split
"teacher" alone; progress is watched on "validation"; the card's numbers are generated answers on "evaluation".
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from linearize_glance.benchmark import GlanceBenchmark
from linearize_glance.config import GlanceBenchmarkConfig, GlanceConfig
from linearize_glance.source import GlanceSource
from linearize_glance.wording import KEYS, vocabulary_corpus, words
from linearize_hovle.adapter import HovleAdapter
from linearize_hovle.checkpoint import save_model
from linearize_hovle.config import HovleTeacherConfig
from linearize_hovle.configuration import HovleConfig
from linearize_hovle.modeling import HovleForConditionalGeneration
from linearize_hovle.prompt import IMAGE_CONTEXT, TURN_END
from linearize_hovle.tokenization import ADDED_TOKENS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from linearize.evaluate.answers import generate_answers
from linearize.pipeline.environment import describe_environment
from linearize.protocols import Batch
from linearize.protocols.conversation import Conversation, Turn

TILE, PATCH = 112, 14


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of both towers; the defaults are those of the model inside linearize_hovle, 1/16 of HoVLE's width.

    Attributes:
        num_layers: of the embedding module and of the language model.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    mlp_size: int
    num_layers: tuple[int, int]


# Conversations per optimizer step. Many questions about one picture or text: a question costs few tokens beside what
# it is about, and with the usual four at most a run of the same length learned neither spatial relations nor recall.
MIX: tuple[tuple[int, dict[str, Any]], ...] = (
    (150, {"tasks": {"attribute": 1, "count": 1, "ocr": 2, "chart": 1, "digits": 2}, "difficulty": {"ocr": (1, 4)}}),
    (80, {"tasks": {"spatial": 1}, "turns": (1, 7)}),
    (30, {"tasks": {"album": 1}, "turns": (1, 6), "difficulty": {"album": (1, 4)}}),
    (10, {"tasks": {"album": 1}, "turns": (1, 4), "difficulty": {"album": (5, 6)}}),
    (24, {"tasks": {"ocr": 1}, "difficulty": {"ocr": (5, 8)}}),
    (80, {"tasks": {"recall": 1}, "turns": (1, 8), "difficulty": {"recall": (2, 10)}}),
    (16, {"tasks": {"recall": 1}, "turns": (1, 6), "difficulty": {"recall": (11, 32)}}),
)
NUM_DRILLS, DRILL_PAIRS = 60, (2, 14)


def write_tokenizer(path: Path) -> int:
    """Trains a sentencepiece model with one piece per word, with and without a space in front; returns its size."""
    spoken = [*words(), "user", "assistant"]
    symbols = ["▁", "\n", *(f"▁{word}" for word in spoken), *spoken]
    lines = [line.replace("\n", " ") for line in vocabulary_corpus()]
    characters = len({character for line in lines for character in line.replace(" ", "▁")} | set("userassistant"))
    with tempfile.TemporaryDirectory() as scratch:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*lines, "user assistant"]),
            model_prefix=f"{scratch}/tokenizer",
            model_type="bpe",
            vocab_size=3 + len(symbols) + characters,
            hard_vocab_limit=False,
            user_defined_symbols=symbols,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=1.0,
            minloglevel=2,
        )
        path.write_bytes(Path(f"{scratch}/tokenizer.model").read_bytes())
    return int(sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size())


def make_config(vocab_size: int, shape: Shape) -> HovleConfig:
    """HoVLE's architecture, smaller: the embedding module's layers, then the language model's."""
    first_added = vocab_size - len(ADDED_TOKENS)
    tower = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.mlp_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    embedding = {
        "num_hidden_layers": shape.num_layers[0],
        "image_size": TILE,
        "patch_size": PATCH,
        "image_token_id": first_added + ADDED_TOKENS.index(IMAGE_CONTEXT),
    }
    language = {
        "num_hidden_layers": shape.num_layers[1],
        "bos_token_id": 1,
        "eos_token_id": first_added + ADDED_TOKENS.index(TURN_END),
        "pad_token_id": 2,
    }
    return HovleConfig(
        embedding_config=tower | embedding,
        text_config=tower | language,
        image_size=TILE,
        template="internlm2-chat-bare",
        max_dynamic_patch=6,
    )


def initialize(model: nn.Module, seed: int, depth: int) -> None:
    """Fresh weights; embeddings larger than transformers' 0.02, with which a prototype did not learn to read."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(1.0 if "norm" in name else 0.0)
        elif "position_embedding" in name:
            parameter.data.normal_(0, 0.2, generator=generator)
        elif "text_embeddings" in name or "embed_tokens" in name:
            parameter.data.normal_(0, 0.5, generator=generator)
        else:
            fan_in = parameter[0].numel()
            shrink = 1 / math.sqrt(2 * depth) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            parameter.data.normal_(0, shrink / math.sqrt(fan_in), generator=generator)


def recall_drill(generator: np.random.Generator) -> Conversation:
    """Pairs to be said again in another order: after each key one value is right. Teaches to look up."""
    level = int(generator.integers(DRILL_PAIRS[0], DRILL_PAIRS[1] + 1))
    pairs = [f"{KEYS[key]} {generator.integers(0, 10)}" for key in generator.permutation(len(KEYS))[:level]]
    again = [pairs[number] for number in generator.permutation(level)]
    return Conversation((Turn(" ".join(pairs), " ".join(again)),), task="drill")


def padded(batch: Batch) -> Batch:
    """The batch with rows a multiple of 64 tokens long, so that compiled layers see one shape."""
    more = -batch.loss_mask_BT.shape[1] % 64
    text = {name: F.pad(batch.inputs[name], (0, more)) for name in ("input_ids", "attention_mask")}
    return Batch(batch.inputs | text, F.pad(batch.loss_mask_BT, (0, more)), F.pad(batch.token_kind_BT, (0, more)))


class Steps(IterableDataset[Batch]):
    """Optimizer steps without end, one batch each; worker w of W makes steps w, w+W, ..."""

    def __init__(self, folder: Path, seed: int, scale: float) -> None:
        self.folder, self.seed, self.scale = folder, seed, scale

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        step, stride = (info.id, info.num_workers) if info else (0, 1)
        adapter = HovleAdapter(HovleTeacherConfig(checkpoint=str(self.folder)))
        mix = [
            (max(1, round(size * self.scale)), GlanceSource(GlanceConfig(split="teacher", seed=self.seed, **options)))
            for size, options in MIX
        ]
        while True:
            conversations = [source[step * size + number] for size, source in mix for number in range(size)]
            generator = np.random.default_rng((self.seed, step))
            conversations += [recall_drill(generator) for _ in range(max(1, round(NUM_DRILLS * self.scale)))]
            batch = padded(adapter.batch(conversations))
            batch.inputs["pixel_values"] = batch.inputs["pixel_values"].bfloat16()
            yield batch
            step += stride


def answer_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits that predict answer tokens, and those tokens."""
    # Rows are padded on the right, so that causal attention alone keeps padding out; without a mask it is also faster.
    inputs = {name: tensor for name, tensor in batch.inputs.items() if name != "attention_mask"}
    logits_BTV = model(**inputs, use_cache=False).logits
    predicting_BT = batch.loss_mask_BT[:, 1:]
    return logits_BTV[:, :-1][predicting_BT].float(), batch.inputs["input_ids"][:, 1:][predicting_BT]


@torch.no_grad()
def teacher_forced_accuracy(model: Any, adapter: HovleAdapter, questions: int, device: str) -> dict[str, float]:
    """Share of validation questions whose whole answer, end mark included, is the likeliest token by token."""
    benchmark = GlanceBenchmark(GlanceBenchmarkConfig(questions=questions, split="validation"))
    accuracy = {}
    for task in benchmark.tasks:
        batch = adapter.batch(benchmark.questions(task)).to(device)
        with torch.autocast(device, torch.bfloat16):
            logits, wanted = answer_logits(model, batch)
        row = batch.loss_mask_BT[:, 1:].nonzero()[:, 0]
        wrong = torch.zeros(questions, device=device).index_add_(0, row, (logits.argmax(-1) != wanted).float())
        accuracy[task] = float((wrong == 0).float().mean())
    return accuracy


def train(model: Any, adapter: HovleAdapter, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains for the given time: warm-up over 3 %, then linearly down to zero from 10 %."""
    device = arguments.device
    steps = Steps(folder, arguments.seed, arguments.scale)
    loader = DataLoader(
        steps, batch_size=None, num_workers=arguments.workers, pin_memory=device == "cuda",
        prefetch_factor=4 if arguments.workers else None,
    )  # fmt: skip
    fused = device == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=fused
    )
    seconds, started, last_report, step, tokens = arguments.minutes * 60, None, 0.0, 0, 0
    losses: list[Tensor] = []
    for batch in loader:
        if started is None:
            answer_logits(model, batch.to(device))[0].sum().backward()  # compiles before the clock starts
            model.zero_grad()
            started = time.perf_counter()
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            break
        fraction = elapsed / seconds
        factor = min(1.0, fraction / 0.03 + 0.01, (1 - fraction) / 0.9)
        tokens += int(batch.inputs["attention_mask"].sum())
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits, wanted = answer_logits(model, batch.to(device))
        loss = F.cross_entropy(logits, wanted)
        loss.backward()
        losses.append(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if elapsed - last_report > seconds / 16 or step == 20:
            last_report = elapsed
            with torch.compiler.set_stance("force_eager"):
                accuracy = teacher_forced_accuracy(model, adapter, 100, device)
            shown = " ".join(f"{task} {value:.2f}" for task, value in accuracy.items())
            mean_loss = float(torch.stack(losses).mean())
            losses = []
            print(
                f"{elapsed:5.0f} s  step {step}  {tokens / 1e6:.1f} M tokens  loss {mean_loss:.4f}  {shown}", flush=True
            )
    return {"steps": step, "tokens": tokens, "minutes": arguments.minutes}


def final_scores(model: Any, adapter: HovleAdapter, questions: int) -> dict[str, float]:
    """Share of right generated answers per task on fresh questions."""
    benchmark = GlanceBenchmark(GlanceBenchmarkConfig(questions=questions, split="evaluation"))
    scores = {}
    for task in benchmark.tasks:
        asked = benchmark.questions(task)
        answers = generate_answers(model, adapter, asked, batch_size=200, max_new_tokens=20)
        right = sum(benchmark.is_correct(question, answer) for question, answer in zip(asked, answers, strict=True))
        scores[task] = right / questions
    return scores


def model_card(
    scores: dict[str, float], training: dict[str, Any], arguments: argparse.Namespace, shape: Shape, parameters: int
) -> str:
    """The README.md of the folder."""
    environment = describe_environment(torch.device(arguments.device))
    rows = "\n".join(f"| {task} | {score:.3f} |" for task, score in scores.items())
    command = (
        f"--minutes {arguments.minutes:g} --seed {arguments.seed} --lr {arguments.lr:g} --workers {arguments.workers}"
    )
    command += " --compile" if arguments.compile else ""
    command += (
        f" --hidden-size {shape.hidden_size} --heads {shape.num_heads} --kv-heads {shape.num_kv_heads}"
        f" --mlp-size {shape.mlp_size} --layers {shape.num_layers[0]} {shape.num_layers[1]}"
    )
    return f"""# A small HoVLE

A small model with HoVLE's architecture ({shape.num_layers[0]} layers in the embedding module, {shape.num_layers[1]} in
the language model, grouped queries, no vision encoder), {parameters:,} parameters in bfloat16, trained from scratch on
the drawn tasks of `linearize_glance`. It exists so that linearize can be run and judged on any machine. It knows those
tasks and nothing else.

Made by `python teachers/train_embedded_hovle.py {command}`
on {environment["device"]} with torch {environment["packages"]["torch"]} at commit {environment["commit"]}:
{training["steps"]:,} steps, {training["tokens"] / 1e6:.0f} M tokens of split "teacher" (bfloat16 autocast). It stops by
the clock, so that another run gives other weights.

Generated answers on {arguments.questions} fresh questions per task of split "evaluation", bfloat16 weights:

| task | right |
|---|---|
{rows}
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=7.3, help="training time, start-up and scoring not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1.2e-3, help="peak learning rate")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--mlp-size", type=int, default=320, help="width of the feed-forward layers")
    parser.add_argument(
        "--layers",
        type=int,
        nargs=2,
        default=(2, 6),
        metavar=("EMBEDDING", "LANGUAGE"),
        help="decoder layers per tower",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the batch sizes")
    parser.add_argument("--workers", type=int, default=14, help="processes that draw; 0 draws in the training process")
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers first, about a minute")
    parser.add_argument("--questions", type=int, default=1000, help="evaluation questions per task")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    arguments.out.mkdir(parents=True, exist_ok=True)
    shape = Shape(
        arguments.hidden_size, arguments.heads, arguments.kv_heads, arguments.mlp_size, tuple(arguments.layers)
    )
    pieces = write_tokenizer(arguments.out / "tokenizer.model")
    model: Any = HovleForConditionalGeneration(make_config(pieces + len(ADDED_TOKENS), shape))
    initialize(model, arguments.seed, depth=sum(shape.num_layers))
    save_model(model.bfloat16(), arguments.out)
    model.float()
    adapter = HovleAdapter(HovleTeacherConfig(checkpoint=str(arguments.out)))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, vocabulary {pieces + len(ADDED_TOKENS)}", flush=True)
    model.to(arguments.device)
    if arguments.compile:
        # Small layers spend their time on launches and on moving memory; fusing them trains several times faster.
        for layer in [*model.embedding_model.layers, *model.language_model.layers]:
            layer.compile(dynamic=False)
    training = train(model, adapter, arguments, arguments.out)
    save_model(model.cpu().bfloat16(), arguments.out)
    trained = adapter.load(dtype=torch.float32, device=arguments.device)
    scores = final_scores(trained, adapter, arguments.questions)
    (arguments.out / "README.md").write_text(
        model_card(scores, training, arguments, shape, parameters), encoding="utf-8"
    )
    print(json.dumps(scores), flush=True)


if __name__ == "__main__":
    main()
