"""No tensor of a checkpoint is drawn at random, dropped or cut silently: what transformers reports is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from linearize.errors import CheckpointError

ADVICE = "Save it anew, and keep config.json and weights of one save together."


def refuse_wrong_tensors(what: str, info: Mapping[str, Any], advice: str = ADVICE) -> None:
    """Fails where a model that was loaded is not what its files hold.

    Args:
        what: the thing that was loaded, and from where.
        info: the loading info of transformers' ``from_pretrained``, which was called with ``ignore_mismatched_sizes``.
        advice: what to do.

    Raises:
        CheckpointError: tensors are missing, surplus or of another shape; names some of each.
    """
    problems = [
        f"{len(names)} {kind} ({', '.join(sorted(map(str, names))[:5])}{', ...' if len(names) > 5 else ''})"
        for kind, key in (
            ("missing", "missing_keys"),
            ("surplus", "unexpected_keys"),
            ("of another shape", "mismatched_keys"),
        )
        if (names := list(info.get(key) or ()))
    ]
    if problems:
        raise CheckpointError(
            f"the weights of {what} do not fit its config.json; tensors: {'; '.join(problems)}. {advice}"
        )
