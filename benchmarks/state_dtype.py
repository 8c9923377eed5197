"""What a state in bfloat16 costs in accuracy: outputs and greedy choices after a long prompt, step by step.

    python benchmarks/state_dtype.py --out state_dtype --prompt 4096 --steps 512

makes of the embedded HoVLE one student for each mixer, seeded from its attention and not trained; ``--student FOLDER``
takes a saved student instead. Each reads a prompt of random tokens and goes on by tokens that it draws itself, in
float32 with its state in float32. The same tokens are then fed, one by one, to the student with ``state_dtype =
"bfloat16"``, to the student in bfloat16 with its state in float32, and to the student with both in bfloat16. Compared
are the logits of each step: the error is the norm of the difference over the norm, over all steps and over the last
eighth of them, where a state that goes astray shows; "same choice" is the share of steps whose largest logit is the
same token. The state's error is to be seen beside the weights' own. Results go to ``state_dtype.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from linearize.mixing.attention_seeder import AttentionSeeder
from linearize.pipeline.environment import describe_environment
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec, TeacherSpec
from linearize.student.convert import convert, release_teacher
from linearize.student.mixers import build_mixer
from linearize.student.modeling import load_student
from linearize.student.state import CACHE_NAME

VARIANTS = {"state": (torch.float32, "bfloat16"), "weights": (torch.bfloat16, "float32"),
            "both": (torch.bfloat16, "bfloat16")}  # fmt: skip
"""What is in bfloat16 -> the model's dtype and the state's."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """Of one student, from itself in float32.

    Attributes:
        in_bfloat16: "state", "weights" or "both".
        error: of the logits of all steps; relative, in the norm.
        late_error: of the last eighth of them.
        same_choice: share of steps with the same largest logit.
        state_bytes: of one sequence's state.
    """

    student: str
    in_bfloat16: str
    error: float
    late_error: float
    same_choice: float
    state_bytes: int


def seeded_student(mixer: str, device: str) -> Any:
    """The embedded HoVLE with this mixer at every site."""
    registry = Plugins.discover().registry
    teacher, spec = registry.get(TeacherSpec, "hovle"), registry.get(MixerSpec, mixer)
    adapter = teacher.builder()(teacher.config_class()())
    model, mixers = adapter.load(dtype=torch.float32, device=device), {}
    for site in adapter.sites():
        made = mixers[site.index] = build_mixer(spec, spec.config_class()(), site)
        generator = torch.Generator().manual_seed(site.index)
        AttentionSeeder(style="mimic", copies=True).seed(
            adapter.weights(model, site), made, site=site, generator=generator
        )
    convert(model, adapter.sites(), mixers)
    release_teacher(model)
    return model.to(device)


@torch.inference_mode()
def logits_of_steps(
    model: Any, prompt_BT: Tensor, *, steps: int, chunk: int, forced_BT: Tensor | None = None
) -> tuple[Tensor, Tensor, Any]:
    """The logits [steps, V] after the prompt and each further token, those tokens, and the cache.

    Args:
        forced_BT: the further tokens; None: drawn from the logits.
    """
    cache, generator, tokens, found = DynamicCache(), torch.Generator().manual_seed(5), list[Tensor](), list[Tensor]()
    logits_BV = torch.empty(0)
    for piece_BT in prompt_BT.split(chunk, 1):
        logits_BV = _last_logits(model, piece_BT, cache)
    for step in range(steps):
        found.append(logits_BV.float().cpu())
        if forced_BT is None:
            token_BT = torch.multinomial(found[-1].softmax(-1), 1, generator=generator)
        else:
            token_BT = forced_BT[:, step : step + 1]
        tokens.append(token_BT)
        logits_BV = _last_logits(model, token_BT.to(prompt_BT.device), cache)
    return torch.cat(found), torch.cat(tokens, 1), cache


def _last_logits(model: Any, ids_BT: Tensor, cache: Any) -> Tensor:
    output = model(input_ids=ids_BT, use_cache=True, logits_to_keep=1, **{CACHE_NAME: cache})
    logits_BV: Tensor = output.logits[:, -1]
    return logits_BV


def deviations(name: str, model: Any, arguments: argparse.Namespace) -> list[Deviation]:
    """Each variant beside the student in float32, over the same tokens."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(1)
    prompt_BT = torch.randint(2, min(vocabulary, 150), (1, arguments.prompt), generator=generator).to(arguments.device)
    options = {"steps": arguments.steps, "chunk": arguments.chunk}
    model.config.state_dtype = "float32"
    wanted, tokens_BT, _ = logits_of_steps(model, prompt_BT, **options)
    late, found = max(1, arguments.steps // 8), []
    for what, (dtype, state_dtype) in VARIANTS.items():
        variant = copy.deepcopy(model).to(dtype)
        variant.config.state_dtype = state_dtype
        logits, _, cache = logits_of_steps(variant, prompt_BT, forced_BT=tokens_BT, **options)
        found.append(Deviation(
            student=name,
            in_bfloat16=what,
            error=_relative(logits, wanted),
            late_error=_relative(logits[-late:], wanted[-late:]),
            same_choice=float((logits.argmax(-1) == wanted.argmax(-1)).float().mean()),
            state_bytes=sum(state.nbytes for layer in cache.layers for state in layer.states.values()),
        ))  # fmt: skip
        print(found[-1], flush=True)
    return found


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def table(found: list[Deviation]) -> str:
    """A row per student: errors, then same choices, each for the state, the weights and both."""
    lines = ["| mixer | error: state | weights | both | last eighth: state | weights | both "
             "| same choice: state | weights | both | state KiB, float32 | bfloat16 |"]  # fmt: skip
    lines += ["|---|" + "---:|" * 11]
    for name in dict.fromkeys(one.student for one in found):
        one = {deviation.in_bfloat16: deviation for deviation in found if deviation.student == name}
        cells = [f"{one[what].error:.2%}" for what in VARIANTS]
        cells += [f"{one[what].late_error:.2%}" for what in VARIANTS]
        cells += [f"{one[what].same_choice:.1%}" for what in VARIANTS]
        cells += [f"{one[what].state_bytes / 1024:,.0f}" for what in ("weights", "both")]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for state_dtype.json")
    parser.add_argument("--mixers", nargs="*", default=[], help="types of mixers; none: all that are installed")
    parser.add_argument("--student", type=Path, help="a saved student, instead of seeded ones")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prompt")
    parser.add_argument("--chunk", type=int, default=4096, help="of which so many are read at a time")
    parser.add_argument("--steps", type=int, default=512, help="tokens after the prompt")
    return parser.parse_args()


def main() -> None:
    """Measures one student after the other, and writes what there is after each."""
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    specs = Plugins.discover().registry.all(MixerSpec)
    names = [str(arguments.student)] if arguments.student else arguments.mixers or sorted(spec.name for spec in specs)
    environment = describe_environment(torch.device(arguments.device))
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    found: list[Deviation] = []
    for name in names:
        if arguments.student:
            model = load_student(arguments.student, dtype=torch.float32, device=arguments.device)
        else:
            model = seeded_student(name, arguments.device)
        found += deviations(name, model, arguments)
        answer = {"environment": environment, "options": options, "found": [asdict(one) for one in found]}
        (arguments.out / "state_dtype.json").write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    print(f"\n{environment['device']}, torch {environment['packages']['torch']}, commit {environment['commit']}\n")
    print(table(found))


if __name__ == "__main__":
    main()
