"""Ids to text one token at a time, by the tokenizers library: ``transformers serve`` streams with nothing else.

It takes the Rust object inside a tokenizer, which one on sentencepiece does not have.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

SPACE = "▁"
"""How sentencepiece writes a space."""


def decoding_tokenizer(tokenizer: Any) -> Tokenizer:
    """A tokenizer that decodes as a HovleTokenizer does, and encodes nothing."""
    pieces = dict(enumerate(tokenizer.sp_model.id_to_piece(list(range(tokenizer.sp_model.get_piece_size())))))
    pieces |= {token: str(added) for token, added in tokenizer.added_tokens_decoder.items()}
    made = Tokenizer(models.WordLevel({piece: token for token, piece in pieces.items()}, str(tokenizer.unk_token)))
    made.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(
        [AddedToken(pieces[token], special=True, normalized=False) for token in sorted(tokenizer.all_special_ids)]
    )
    return made
