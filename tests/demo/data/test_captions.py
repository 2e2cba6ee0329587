import random

import numpy as np
import pytest

from demo.data import captions
from demo.data.captions import Properties
from demo.data.fashion_mnist import CLASS_NAMES

SHIRT, BAG, BOOT = (CLASS_NAMES.index(name) for name in ("shirt", "bag", "ankle boot"))


def drawn(value: int = 150, width: int = 20, height: int = 28) -> np.ndarray:
    """An even rectangle in the middle of a black image."""
    image = np.zeros((32, 32), np.uint8)
    top, left = (32 - height) // 2, (32 - width) // 2
    image[top : top + height, left : left + width] = value
    return image


def measured(image: np.ndarray, label: int) -> Properties:
    return captions.measure(image[None], np.array([label]))[0]


@pytest.mark.parametrize(("value", "tone"), [(60, "dark"), (150, "grey"), (230, "bright")])
def test_tones(value: int, tone: str) -> None:
    assert measured(drawn(value), SHIRT) == Properties("", tone, "plain")


def test_patterns() -> None:
    stripes, spots = drawn(), drawn()
    stripes[::3] //= 3
    chosen = np.random.default_rng(0).random(spots.shape) < 0.3
    spots[chosen] //= 3
    assert measured(stripes, SHIRT).pattern == "striped"
    assert measured(spots, SHIRT).pattern == "patterned"
    assert measured(stripes, BOOT).pattern == ""


def test_shapes() -> None:
    assert measured(drawn(width=26), SHIRT).shape == "wide"
    assert measured(drawn(width=14), SHIRT).shape == "narrow"
    assert measured(drawn(width=28, height=10), BOOT).shape == "low"
    assert measured(drawn(width=12, height=12), BAG).shape == "small"


def test_phrases() -> None:
    assert captions.phrase("ankle boot") == "an ankle boot"
    assert captions.phrase("ankle boot", "", "dark") == "a dark ankle boot"
    assert captions.phrase("trousers", "wide") == "wide trousers"
    assert captions.phrase("bag", article=False) == "bag"


def test_captions_say_only_what_is_so() -> None:
    rng = random.Random(0)
    said = {captions.caption(SHIRT, Properties("wide", "", "striped"), rng) for _ in range(300)}
    assert {"a wide striped shirt", "a shirt", "striped blouse"} <= said
    words = {word for text in said for word in text.split()}
    assert words == {"a", "wide", "striped", "shirt", "blouse"}


def test_there_is_a_prompt_for_each_class() -> None:
    prompts = captions.prompts()
    assert len(set(prompts)) == len(CLASS_NAMES)
    assert prompts[BOOT] == "an ankle boot"
