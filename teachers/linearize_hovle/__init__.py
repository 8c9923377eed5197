"""HoVLE as a teacher: an embedding module and a language model, both causal, over image and text tokens."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import TeacherSpec


@hookimpl
def linearize_register(register: Register) -> None:
    """Adds the teacher "hovle"."""
    register(
        TeacherSpec(
            name="hovle",
            build="linearize_hovle.adapter:HovleAdapter",
            config="linearize_hovle.config:HovleTeacherConfig",
            source="https://arxiv.org/abs/2412.16158",
            summary="HoVLE: encoder-free vision-language model; the embedded one, a folder, or a hub id",
            model_types={"hovle": "linearize_hovle.registration:HovleForConditionalGeneration"},
            shapes={"hovle-2.6b": "linearize_hovle:shapes/hovle-2.6b"},
        )
    )
