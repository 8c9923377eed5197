"""Key-value heads: shared by groups of query heads as in the teacher (GQA), or one for each query head.

Letters: N query heads, M key-value heads, X rows of one head.
"""

from __future__ import annotations

from torch import Tensor

from linearize.ops.gated import repeat_heads
from linearize.protocols import AttentionSite


def repeat_for_query_heads(rows: Tensor, site: AttentionSite) -> Tensor:
    """The rows of a k or v projection, M·X of a weight or bias, once for each query head of a group: N·X."""
    return repeat_heads(rows.unflatten(0, (site.num_key_value_heads, -1)), site.num_heads, 0).flatten(0, 1)
