"""Tiling, pixel values and prompts against golden data of the reference implementation.

Every folder ``preprocess*`` is a case; whatever its files list is tested.
"""

from __future__ import annotations

import ast
import hashlib
import json
import operator
import os
from pathlib import Path
from typing import Any

import checkout
import numpy as np
import PIL
import pytest
from linearize_hovle.prompt import IMAGE_CONTEXT, IMAGE_MARK, expand_images, get_template, with_image_marks
from linearize_hovle.tiling import choose_grid, count_tiles, cut_tiles, normalize
from packaging.version import Version
from PIL import Image
from safetensors.numpy import load_file

pytestmark = pytest.mark.parity

FIXTURES = Path(os.environ.get("LINEARIZE_FIXTURES", checkout.FIXTURES))
FOLDERS = sorted(folder for folder in FIXTURES.glob("preprocess*") if folder.is_dir())

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def evaluate(node: ast.AST, values: dict[str, Any]) -> Any:
    """Integer arithmetic over named arrays: what the image formulas consist of."""
    match node:
        case ast.Constant(value=int() as number):
            return number
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](evaluate(left, values), evaluate(right, values))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate(operand, values)
    raise ValueError(f"unexpected {ast.dump(node)} in an image formula")


# Another Pillow may round a few resized pixels to the next grey level; the same Pillow gives the same pixels, and those
# of the reference are Pillow 13's. Before that release 1.1 % of one image's were rounded otherwise.
MOST_WRONG = 1e-3 if Version(PIL.__version__) >= Version("13") else 0.02


def draw(case: dict[str, Any]) -> Image.Image:
    """The image of a formula such as "p[y,x,c] = (red, green, blue)[c]"."""
    formula = ast.parse(case["formula"].split("=", 1)[1].strip(), mode="eval").body
    assert isinstance(formula, ast.Subscript)
    assert isinstance(formula.value, ast.Tuple)
    y, x = np.mgrid[: case["height"], : case["width"]]
    values = {"x": x, "y": y, "W": case["width"], "H": case["height"]}
    pixels = np.stack([np.broadcast_to(evaluate(part, values), x.shape) for part in formula.value.elts], axis=-1)
    array = pixels.astype(np.uint8)
    assert hashlib.sha256(array.tobytes()).hexdigest() == case["sha256_of_uint8_HWC_bytes"]
    return Image.fromarray(array)


def test_every_grid_and_tile_count_is_the_reference_s(folder: Path) -> None:
    for case in read(folder / "tiling.json")["cases"]:
        grid = choose_grid(
            case["width"],
            case["height"],
            image_size=case["image_size"],
            min_tiles=case.get("min_num", 1),
            max_tiles=case["max_num"],
        )
        assert list(grid) == case["grid_cols_rows"], case
        assert count_tiles(grid, use_thumbnail=case["use_thumbnail"]) == case["num_tiles"], case


def test_pixel_values_are_the_reference_s(folder: Path) -> None:
    meta, golden = read(folder / "images.json"), load_file(folder / "pixel_values.safetensors")
    for case in meta["images"]:
        tiles = cut_tiles(
            draw(case),
            image_size=case["image_size"],
            min_tiles=case.get("min_num", 1),
            max_tiles=case["max_num"],
            use_thumbnail=case["use_thumbnail"],
        )
        ours, expected = normalize(tiles, meta["mean"], meta["std"]), golden[f"{case['name']}.pixel_values"]
        assert ours.shape == expected.shape
        assert len(tiles) == case["num_tiles"]
        wrong = np.abs(ours - expected) > 1e-5
        assert wrong.mean() <= MOST_WRONG, f"{case['name']}: {wrong.sum()} of {wrong.size} values differ"
        assert np.abs(ours - expected).max() < 1.01 / 255 / min(meta["std"]), case["name"]


def test_prompts_are_the_reference_s_string_for_string(folder: Path) -> None:
    meta = read(folder / "conversations.json")
    template = get_template(meta["template"])
    assert list(template.roles) == meta["roles"]
    assert template.end == meta["sep"]
    assert template.system == meta["system_message"]
    for case in meta["cases"]:
        history, tiles, question = case.get("history"), case["num_patches_list"], case["question"]
        if history is None:
            # The reference puts one mark in front however many images there are.
            question = with_image_marks(question, min(1, len(tiles)))
        prompt = template.render([*map(tuple, history or []), (question, None)], system=case.get("system_message"))
        assert prompt == case["prompt"]
        expanded = expand_images(prompt, tiles[: prompt.count(IMAGE_MARK)], case["num_image_token"])
        assert expanded == case["expanded_prompt"]
        assert expanded.count(IMAGE_CONTEXT) == case["expanded_prompt"].count(IMAGE_CONTEXT)
