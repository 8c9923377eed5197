"""Makes a student's configuration say what the model in memory is: which tables are one tensor, which dtypes it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from linearize.student.convert import linearized_sites


def set_ties(student: Any, state: Mapping[str, Tensor]) -> None:
    """Makes the configuration of ``student`` say whether its tables are one tensor, as in ``state`` they are or not.

    A teacher's configuration may say otherwise: transformers leaves tables apart that its file has twice.

    Raises:
        ValueError: a part of the model shares some of the tables that its configuration can only share all together.
    """
    for path, part in student.named_modules():
        if not isinstance(part, PreTrainedModel) or not part._tied_weights_keys:
            continue
        prefix, before = f"{path}." if path else "", getattr(part.config, "tie_word_embeddings", False)
        part.config.tie_word_embeddings = True
        pairs = part.get_expanded_tied_weights_keys(all_submodels=False)
        names = [(prefix + target, prefix + source) for target, source in pairs.items()]
        shared = [are_one(state[target], state[source]) for target, source in names if {target, source} <= state.keys()]
        if len(set(shared)) > 1:
            raise ValueError(
                f"of {names} some are one tensor and some are two, which tie_word_embeddings cannot say; tie all of "
                "them or none before the student is saved"
            )
        part.config.tie_word_embeddings = shared[0] if shared else before


def set_dtypes(student: Any) -> None:
    """Makes the description of ``student`` say which dtype its parameters have.

    Raises:
        ValueError: they have two of lower precision.
    """
    decays = {
        f"{slot.site.path}.mixer.{name}" for slot in linearized_sites(student) for name in fp32_parameters(slot.mixer)
    }
    dtypes = {
        name: tensor.dtype
        for name, tensor in student.named_parameters()
        if tensor.is_floating_point() and name not in decays
    }
    lower = sorted({str(dtype).removeprefix("torch.") for dtype in dtypes.values()} - {"float32"})
    if len(lower) > 1:
        raise ValueError(
            f"the model's parameters are {' and '.join(lower)}; a student is saved in one dtype, beside parameters in "
            "float32: cast the model before it is saved"
        )
    kept = [name for name, dtype in dtypes.items() if dtype == torch.float32] if lower else []
    student.config.linearize = student.config.linearize | {"dtype": (lower or ["float32"])[0], "float32": kept}


def fp32_parameters(mixer: Any) -> list[str]:
    """A mixer's decay parameters, which stay fp32 in a model of lower precision.

    Matrices are left out: those are projections that give a token's decay, and a projection runs in the model's dtype.
    """
    shapes = {name: parameter.dim() for name, parameter in mixer.named_parameters()}
    return [name for name, roles in mixer.roles().items() if "decay" in roles and shapes[name] < 2]


def refuse_other_names(described: Iterable[str], found: Iterable[str], misshapen: Sequence[str] = ()) -> None:
    """Fails unless a model holds the tensors that its configuration describes: only these can be loaded again.

    Args:
        described: names of tensors.
        found: names of tensors.
        misshapen: names of tensors with their shapes, for the message.

    Raises:
        ValueError: a tensor is surplus, missing or of another shape, as with an adapter that is not merged.
    """
    described, found = set(described), set(found)
    problems = [
        f"{len(names)} {what} ({some_names(names)})"
        for what, names in (
            ("that its configuration does not know", [*(found - described)]),
            ("less", [*(described - found)]),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"the model in memory is not what its configuration describes, so it could not be loaded again; tensors: "
            f"{'; '.join(problems)}. Merge adapters and dequantise; after a change of the vocabulary, set vocab_size"
        )


def some_names(names: Iterable[str]) -> str:
    """The first few, for a message."""
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (", ..." if len(ordered) > 4 else "")


def are_one(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same memory, seen the same way."""
    if first.is_meta or second.is_meta:
        return first is second
    return first.data_ptr() == second.data_ptr() and first.shape == second.shape and first.dtype == second.dtype
