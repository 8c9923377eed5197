"""Vision-language models and text LLMs of the transformers library as teachers, by one adapter."""

from __future__ import annotations

from linearize.plugin.hookspecs import Register, hookimpl
from linearize.plugin.specs import TeacherSpec


@hookimpl
def linearize_register(register: Register) -> None:
    """Adds the teacher "transformers"."""
    register(
        TeacherSpec(
            name="transformers",
            build="linearize_transformers.adapter:TransformersAdapter",
            config="linearize_transformers.config:TransformersTeacherConfig",
            source="https://github.com/huggingface/transformers",
            summary="any decoder-only vision-language model or LLM of transformers; a folder or a hub id",
            model_types_from="linearize_transformers.models:model_classes",
            shapes={"smollm2-135m": "linearize_transformers:shapes/smollm2-135m"},
        )
    )
