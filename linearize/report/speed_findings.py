"""Where the curves of a student and its teacher cross, and how far apart they are at the longest prompt, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from linearize.report.speed import Bench, SpeedCell, SpeedModel, times

Points = Sequence[tuple[int, float]]
"""(tokens, ratio of student to teacher), tokens ascending."""
Quantity = Callable[[SpeedCell], float | None]


def token_ms(cell: SpeedCell) -> float | None:
    """Milliseconds of a token; None where there are none."""
    return median(cell.token_ms) if cell.token_ms else None


def first_ms(cell: SpeedCell) -> float | None:
    """Milliseconds until the first token; None where there are none."""
    return median(cell.first_ms) if cell.first_ms else None


def held_bytes(cell: SpeedCell) -> float | None:
    """Bytes of state and cache; None where there are none."""
    return cell.cache_bytes or None


def peak_bytes(cell: SpeedCell) -> float | None:
    """Most memory of the accelerator; None on a CPU."""
    return cell.peak_bytes or None


def batch_speed(cell: SpeedCell) -> float | None:
    """Tokens a second of the largest batch; None where there is none."""
    return cell.batch.tokens_per_second if cell.batch else None


def speed_findings(bench: Bench) -> list[str]:
    """A sentence for each student with a teacher, quantity and engine."""
    sentences: list[str] = []
    for model in bench.models:
        if not model.teacher:
            continue
        for engine in bench.engines:
            for does, does_not, quantity in (
                ("decodes faster", "does not decode faster", token_ms),
                ("reads prompts faster", "does not read prompts faster", first_ms),
            ):
                if points := _ratios(bench, model, engine, quantity):
                    tokens, ratio = points[-1]
                    speed = f"{times(1 / ratio)} as fast at {tokens:,} tokens"
                    sentences.append(f"{engine}: {_compared(model, does, does_not, points)}; {speed}")
        for engine in bench.engines[-1:]:
            if points := _ratios(bench, model, engine, held_bytes):
                tokens, ratio = points[-1]
                held = _compared(model, "holds less", "does not hold less", points)
                sentences.append(f"state and cache: {held}; {100 * ratio:.2g} % of the bytes at {tokens:,} tokens")
    return sentences


def crossing(points: Points) -> float | None:
    """The number of tokens from which on a student stays below its teacher; None where it does not at the longest.

    Between two lengths it is interpolated, both on logarithmic scales. 0.0: it is below at every length.
    """
    if not points or points[-1][1] >= 1:
        return None
    above = [number for number, (_, ratio) in enumerate(points) if ratio >= 1]
    if not above:
        return 0.0
    (tokens, ratio), (next_tokens, next_ratio) = points[above[-1]], points[above[-1] + 1]
    share = math.log(ratio) / (math.log(ratio) - math.log(next_ratio))
    return math.exp(math.log(tokens) + share * (math.log(next_tokens) - math.log(tokens)))


def _compared(model: SpeedModel, does: str, does_not: str, points: Points) -> str:
    begins = crossing(points)
    if begins is None:
        return f"{model.name} {does_not} than {model.teacher} at the longest prompt"
    where = "at every length measured" if begins == 0 else f"from about {_rounded(begins):,} tokens on"
    return f"{model.name} {does} than {model.teacher} {where}"


def _ratios(bench: Bench, model: SpeedModel, engine: str, quantity: Quantity) -> list[tuple[int, float]]:
    points = []
    for tokens in bench.lengths:
        own, others = bench.cell(model.name, engine, tokens), bench.cell(model.teacher, engine, tokens)
        top, bottom = (quantity(cell) if cell is not None else None for cell in (own, others))
        if top and bottom:
            points.append((tokens, top / bottom))
    return points


def _rounded(tokens: float) -> int:
    """To two digits."""
    size = 10 ** max(0, math.floor(math.log10(max(tokens, 1))) - 1)
    return round(tokens / size) * size
