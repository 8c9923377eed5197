"""Reads and writes students as hustvl/mmMamba published them: HoVLE's layout with fused Mamba-2 layers.

Teacher and mixer are other plug-ins; they are found by their registered names, as a stranger's format would find them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from linearize.errors import CheckpointError
from linearize.files.owned_folder import give_default_modes
from linearize.plugin.discovery import Plugins
from linearize.plugin.specs import MixerSpec, NoOptions, TeacherSpec
from linearize.protocols import AttentionSite
from linearize.student.convert import convert, linearized_sites, release_teacher, replace_module
from linearize.student.mixers import build_mixer, mixer_origin
from linearize.student.site import LinearizedAttention
from linearize_mmmamba.config_json import MODEL_TYPE, linear_sites, to_mmmamba
from linearize_mmmamba.layer import FIXED_OPTIONS, FUSED, NAMES, OUTPUT, fuse_layer, split_layer
from linearize_mmmamba.tensor_files import INDEX, SINGLE, read_json, read_tensors, write_json, write_tensors

TEACHER, MIXER = "hovle", "mamba2"
# The published chat code stops at the mark that closes a turn, not at the language model's own end of text.
TURN_END = "<|im_end|>"


class MmMambaFormat:
    """The published mmMamba checkpoint format, linear and hybrid.

    Args:
        plugins: where teacher and mixer are found; None: all that are installed.
    """

    def __init__(self, config: NoOptions, plugins: Plugins | None = None) -> None:
        del config
        self._plugins = plugins

    def read(self, folder: Path) -> nn.Module:
        """The student in a folder, in eval mode and its stored dtype; kept sites are the teacher's attention itself.

        Raises:
            CheckpointError: no mmMamba folder, or config.json and weights do not belong together; names what differs.
        """
        folder = Path(folder)
        config = read_json(folder / "config.json")
        if config.get("model_type") != MODEL_TYPE:
            raise CheckpointError(
                f"{folder / 'config.json'} has model_type {config.get('model_type')!r}; expected '{MODEL_TYPE}'"
            )
        adapter = self._teacher(checkpoint=str(folder))
        sites: Sequence[AttentionSite] = adapter.sites()
        prefixes = _prefixes(adapter)
        linear = linear_sites(config, prefixes)
        state = read_tensors(folder)
        layers = {index: _take_layer(state, prefixes[index], folder) for index in linear}
        model: Any = adapter.from_published(config, state, without_attention=linear)
        mixers = {index: self._mixer(layers[index], sites[index]) for index in linear}
        for index in linear:
            site = sites[index]
            projection = model.get_submodule(site.path).get_submodule(site.output_projection)
            projection.weight = nn.Parameter(layers[index][OUTPUT])
        convert(model, sites, mixers)
        release_teacher(model)
        model.generation_config.update(**_generation_options(folder, adapter))
        student: nn.Module = model.eval()
        return student

    def write(self, model: nn.Module, folder: Path, *, max_shard_size: int | str = "5GB") -> None:
        """Writes a student's config.json and weights in the model's dtype; the processor's files are not part of it.

        Raises:
            CheckpointError: the folder holds a checkpoint, the model has no linear site, its teacher is no HoVLE, or a
                site holds what the format has no place for: another mixer than "mamba2", options that the published
                code lacks, an output bias.
        """
        folder = Path(folder)
        if taken := [name for name in ("config.json", SINGLE, INDEX) if (folder / name).exists()]:
            raise CheckpointError(
                f"{folder} holds {' and '.join(taken)} of another checkpoint, which is never overwritten; name a "
                "new or an empty folder"
            )
        slots = [slot for slot in linearized_sites(model) if slot.linear]
        if not slots:
            raise CheckpointError(
                f"this {type(model).__name__} has no linear site; the mmMamba format holds students, so convert the "
                "teacher first"
            )
        self._require_base(model)
        for slot in slots:
            _require_expressible(slot)
        with _kept_attention_in_place(model):
            config, state = self._teacher().to_published(model, without_attention=[slot.site.index for slot in slots])
        # An adapter knows the names of its own checkpoint's model, so it is asked about a folder with this config.json.
        with tempfile.TemporaryDirectory() as name:
            write_json(Path(name) / "config.json", config)
            prefixes = _prefixes(self._teacher(checkpoint=name))
        dtype = next(iter(state.values())).dtype
        for slot in slots:
            assert slot.mixer is not None  # a linear slot has one
            layer = fuse_layer(dict(slot.mixer.named_parameters()), slot.o_proj.get_parameter("weight"))
            state |= {prefixes[slot.site.index] + name: value.detach().to(dtype) for name, value in layer.items()}
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(state, folder, max_shard_size)
        write_json(folder / "config.json", to_mmmamba(config, [prefixes[slot.site.index] for slot in slots]))
        give_default_modes(list(folder.glob("model*.safetensors")), like=folder / "config.json")

    def _teacher(self, **options: Any) -> Any:
        spec = self._teacher_spec()
        return spec.builder()(spec.config_class()(**options))

    def _teacher_spec(self) -> TeacherSpec:
        return self._found().registry.get(TeacherSpec, TEACHER, self._found().failures_hint())

    def _require_base(self, model: nn.Module) -> None:
        config: Any = model.config
        base, known = config.model_type.removeprefix("linearize_"), self._teacher_spec().model_types
        if base not in known:
            raise CheckpointError(
                f"the student's base model is '{base}'; the mmMamba format holds students of {', '.join(known)} only; "
                "save it in linearize's own format instead"
            )

    def _mixer(self, layer: dict[str, Tensor], site: AttentionSite) -> nn.Module:
        spec = self._found().registry.get(MixerSpec, MIXER, self._found().failures_hint())
        width = layer["conv1d.weight"].shape[-1]
        options = spec.config_class().model_validate({"conv_width": width, **FIXED_OPTIONS})
        # Cast before the values come: parameters that a mixer holds in fp32 whatever the model is stay so.
        mixer = build_mixer(spec, options, site).to(layer[FUSED].dtype)
        try:
            mixer.load_state_dict(split_layer(layer, site))
        except RuntimeError as error:
            raise CheckpointError(
                f"the tensors of site {site.index} do not fit mixer '{MIXER}' with {site.num_heads} query and "
                f"{site.num_key_value_heads} key-value heads: {error}"
            ) from error
        return mixer

    def _found(self) -> Plugins:
        if self._plugins is None:
            self._plugins = Plugins.discover()
        return self._plugins


def _prefixes(adapter: Any) -> list[str]:
    """The published prefix of every site's attention tensors, in site order."""
    return [adapter.published_attention_prefix(site).removesuffix(".") + "." for site in adapter.sites()]


def _take_layer(state: dict[str, Tensor], prefix: str, folder: Path) -> dict[str, Tensor]:
    """Takes the tensors of one linear layer out of ``state``."""
    missing = [prefix + name for name in NAMES if prefix + name not in state]
    if missing:
        raise CheckpointError(
            f"{folder}: config.json calls {prefix.removesuffix('.')} 'mamba2', but the weights lack "
            f"{', '.join(missing)}; config.json and weights must belong together"
        )
    return {name: state.pop(prefix + name) for name in NAMES}


def _generation_options(folder: Path, adapter: Any) -> dict[str, Any]:
    """What generation_config.json says, without its provenance, and where an answer ends if there is a tokenizer."""
    options: dict[str, Any] = {}
    if (folder / "generation_config.json").is_file():
        content = read_json(folder / "generation_config.json")
        options = {key: value for key, value in content.items() if key[0] != "_" and key != "transformers_version"}
    if (folder / "tokenizer.model").is_file():
        tokenizer = adapter.processor().tokenizer
        ends = {int(tokenizer.convert_tokens_to_ids(TURN_END)), int(tokenizer.eos_token_id)}
        options |= {"eos_token_id": sorted(ends), "pad_token_id": tokenizer.pad_token_id}
    return options


def _require_expressible(slot: LinearizedAttention) -> None:
    assert slot.mixer is not None  # a linear slot has one
    origin = mixer_origin(slot.mixer)
    where = f"site {slot.site.index} ({slot.site.path})"
    advice = "save it in linearize's own format instead"
    if origin.name != MIXER:
        raise CheckpointError(f"{where} holds mixer '{origin.name}'; the mmMamba format has '{MIXER}' only; {advice}")
    other = [
        f"{key} = {origin.options.get(key)!r} (due: {due!r})"
        for key, due in FIXED_OPTIONS.items()
        if origin.options.get(key) != due
    ]
    if not origin.options.get("conv_width"):
        other.append("conv_width = 0 (due: at least 2)")
    if other:
        raise CheckpointError(f"{where}: the published mmMamba code cannot compute {', '.join(other)}; {advice}")
    if getattr(slot.o_proj, "bias", None) is not None:
        raise CheckpointError(f"{where}: the output projection has a bias, for which the format has no place; {advice}")


@contextmanager
def _kept_attention_in_place(model: nn.Module) -> Iterator[None]:
    """Inside, kept sites are bare attention modules under the teacher's own names, released or not."""
    kept = [slot for slot in linearized_sites(model) if not slot.linear]
    for slot in kept:
        assert slot.attention is not None  # only linear slots are released
        replace_module(model, slot.site.path, slot.attention)
    try:
        yield
    finally:
        for slot in kept:
            replace_module(model, slot.site.path, slot)
