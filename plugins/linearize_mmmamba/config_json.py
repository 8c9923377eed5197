"""The published mmMamba config.json: HoVLE's, which also says of each layer whether it is "mamba2" or "mha"."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from linearize.errors import CheckpointError

Table = dict[str, Any]

LINEAR, ATTENTION = "mamba2", "mha"
MODEL_TYPE = "mmMamba_chat"
SECTIONS = {"embedding_model.encoder": "embedding_config", "language_model.model.layers": "llm_config"}

# What convert_weight.py of hustvl/mmMamba writes over the teacher's config.json; architectures are strings, not lists.
CHAT_CODE = "modeling_mmMamba_chat.mmMambaChatModel"
LANGUAGE_CODE = "modeling_mmMamba.mmMambaForCausalLM"
CHANGES: Table = {
    "architectures": "mmMambaChatModel",
    "auto_map": {
        "AutoConfig": "configuration_mmMamba_chat.mmMambaChatConfig",
        "AutoModel": CHAT_CODE,
        "AutoModelForCausalLM": CHAT_CODE,
    },
    "model_type": MODEL_TYPE,
    "embedding_config": {"model_type": "mmMamba_embedding"},
    "llm_config": {
        "architectures": "mmMambaForCausalLM",
        "auto_map": {
            "AutoConfig": "configuration_mmMamba.mmMambaConfig",
            "AutoModel": LANGUAGE_CODE,
            "AutoModelForCausalLM": LANGUAGE_CODE,
        },
        "model_type": "mmMamba",
    },
}


def linear_sites(config: Mapping[str, Any], prefixes: Sequence[str]) -> list[int]:
    """Indices of the sites that the config calls "mamba2".

    Args:
        prefixes: the published attention prefix of every site, in site order.

    Raises:
        CheckpointError: a section lacks its list of layer types, the list has another length than the section has
            layers, or an entry is neither "mamba2" nor "mha".
    """
    places = [_place(prefix) for prefix in prefixes]
    for section in SECTIONS.values():
        num_layers = sum(name == section for name, _ in places)
        found = config.get(section, {}).get("layers_block_type")
        if not isinstance(found, list) or len(found) != num_layers or set(found) - {LINEAR, ATTENTION}:
            raise CheckpointError(
                f"config.json: {section}.layers_block_type is {found!r}; expected a list of {num_layers} entries, "
                f"one per layer, each '{LINEAR}' or '{ATTENTION}'"
            )
    return [
        index for index, (section, layer) in enumerate(places) if config[section]["layers_block_type"][layer] == LINEAR
    ]


def to_mmmamba(config: Table, linear_prefixes: Collection[str]) -> Table:
    """A teacher's published config.json as the student's: other class names, and the type of every layer.

    Args:
        linear_prefixes: published attention prefixes of the sites that are linear.
    """
    student = copy.deepcopy(config)
    for key, value in copy.deepcopy(CHANGES).items():
        student[key] = student[key] | value if key in SECTIONS.values() else value
    linear = {_place(prefix) for prefix in linear_prefixes}
    for section in SECTIONS.values():
        student[section]["layers_block_type"] = [
            LINEAR if (section, layer) in linear else ATTENTION
            for layer in range(student[section]["num_hidden_layers"])
        ]
    return student


def _place(prefix: str) -> tuple[str, int]:
    """Section and layer of a published attention prefix such as "language_model.model.layers.3.attention."."""
    match = re.fullmatch(r"(.+)\.(\d+)\.attention\.?", prefix)
    if match is None or match[1] not in SECTIONS:
        raise CheckpointError(
            f"the teacher's published name of an attention is '{prefix}'; the mmMamba format knows "
            f"{', '.join(SECTIONS)} with a layer number; students of other teachers are saved in linearize's own format"
        )
    return SECTIONS[match[1]], int(match[2])
