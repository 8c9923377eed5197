"""Other libraries kept from talking into what linearize prints."""

from __future__ import annotations

import os
import warnings


def quieten_libraries() -> None:
    """Keeps other libraries' advice and bars out of the output; an environment that says otherwise wins.

    linearize's own warnings go through the display or the logger "linearize", which this leaves alone.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for module in ("transformers", "torch", "accelerate", "fla", "mamba_ssm", "triton"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")


def hide_weight_bars() -> None:
    """Hides transformers' bars over weight files, which would break into ours; downloads keep theirs."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()
