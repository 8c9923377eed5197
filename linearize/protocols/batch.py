"""What a model is given: its inputs, and what each token is.

Letters: B batch, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


TOKEN_PAD, TOKEN_TEXT, TOKEN_IMAGE = 0, 1, 2


@dataclass(slots=True)
class Batch:
    """Model inputs and what each token is.

    Attributes:
        inputs: keyword arguments of the model: input_ids [B, T], attention_mask [B, T], and whatever the images need.
        loss_mask_BT: bool, True at answer tokens, the end-of-turn token that the model must emit included.
        token_kind_BT: uint8, TOKEN_PAD, TOKEN_TEXT or TOKEN_IMAGE.
        segments_BT: int64, which sample each token is of; no two samples of a batch share a number, and pads have one
            of their own. None: a row is one sample.
    """

    inputs: dict[str, Tensor]
    loss_mask_BT: Tensor
    token_kind_BT: Tensor
    segments_BT: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """Conversations and rows of text."""
        if self.segments_BT is None:
            return self.token_kind_BT.shape[0]
        return len(self.segments_BT[self.token_kind_BT != TOKEN_PAD].unique())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()},
            self.loss_mask_BT.to(device, non_blocking=True),
            self.token_kind_BT.to(device, non_blocking=True),
            None if self.segments_BT is None else self.segments_BT.to(device, non_blocking=True),
        )
