"""The code files of a student's folder, by which ``trust_remote_code=True`` loads it without an import of linearize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODEL_MODULE, PROCESSOR_MODULE = "modeling_linearize", "processing_linearize"
CODE = '''"""Loads this student with trust_remote_code=True where linearize and its plug-ins are installed."""

'''
MODEL_CODE = """from linearize.student.classes import remote_classes

StudentConfig, StudentModel = remote_classes("{base}", __name__)
"""
PROCESSOR_CODE = """from linearize.student.classes import remote_processor

StudentProcessor = remote_processor("{target}")
"""


def write_model_code(folder: Path, base_model_type: str) -> None:
    """The file that ``auto_map`` of a student's configuration names."""
    _write(folder, MODEL_MODULE, MODEL_CODE.format(base=base_model_type))


def write_processor_code(folder: Path, processor: type[Any]) -> None:
    """The file for a processor that transformers does not have; its saved configuration is made to name it."""
    path = folder / "processor_config.json"
    if processor.__module__.startswith("transformers.") or not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoProcessor": f"{PROCESSOR_MODULE}.StudentProcessor"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write(folder, PROCESSOR_MODULE, PROCESSOR_CODE.format(target=f"{processor.__module__}:{processor.__qualname__}"))


def is_model_code(path: Path) -> bool:
    """Whether a file is one that ``write_model_code`` wrote, of this version or an earlier one."""
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(CODE)


def _write(folder: Path, module: str, code: str) -> None:
    (folder / f"{module}.py").write_text(CODE + code, encoding="utf-8")
