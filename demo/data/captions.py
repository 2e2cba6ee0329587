"""Captions of Fashion-MNIST from labels and measured properties, such as "a dark ankle boot"."""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .fashion_mnist import CLASS_NAMES

NOUNS = {
    "T-shirt": ("T-shirt", "t-shirt", "tee"),
    "trouser": ("pair of trousers", "pair of pants", "trousers", "pants"),
    "pullover": ("pullover", "sweater"),
    "dress": ("dress",),
    "coat": ("coat", "jacket"),
    "sandal": ("sandal",),
    "shirt": ("shirt", "blouse"),
    "sneaker": ("sneaker", "trainer"),
    "bag": ("bag", "handbag"),
    "ankle boot": ("ankle boot", "boot"),
}
"""Names of a class in captions, the most common one first."""
PLURALS = ("trousers", "pants")
SHOES = ("sandal", "sneaker", "ankle boot")
MENTIONED = {"shape": 0.6, "tone": 0.75, "pattern": 0.75}
"""Probability that a property of an image is mentioned."""
BARE = 0.15
"""Probability that the article is left out."""
_BACKGROUND = 10


@dataclass(frozen=True)
class Properties:
    """Properties of an image; an empty word for an ordinary value.

    Attributes:
        shape: narrow or wide, low or high (shoes), small or large (bags).
        tone: dark, grey or bright.
        pattern: striped, patterned or plain; empty for shoes.
    """

    shape: str
    tone: str
    pattern: str


def measure(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> list[Properties]:
    """The properties of images [n, H, W] on a black background."""
    found: list[Properties] = []
    for start in range(0, len(images), 1000):
        rows = slice(start, start + 1000)
        found += _measure_some(images[rows].astype(np.float32), labels[rows])
    return found


def _measure_some(
    images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> list[Properties]:
    inside = images > _BACKGROUND
    area = inside.sum((1, 2))
    tone = (images * inside).sum((1, 2)) / np.maximum(area, 1)
    width, height = inside.any(1).sum(1), inside.any(2).sum(1)
    stripes, texture = _stripes(images, inside), _texture(images, inside)
    result = []
    for index, label in enumerate(labels):
        name = CLASS_NAMES[label]
        pattern = ""
        if name not in SHOES:
            pattern = _pattern(float(stripes[index]), float(texture[index]))
        if name == "bag":
            shape = _either(area[index], 350, "small", 500, "large")
        elif name in SHOES:
            shape = _either(height[index], 12, "low", 23, "high")
        else:
            narrow, wide = (11, 15) if name in ("trouser", "dress") else (18, 24)
            shape = _either(width[index], narrow, "narrow", wide, "wide")
        dark = _either(tone[index], 100, "dark", 185, "bright")
        grey = "grey" if 115 < tone[index] < 165 else ""
        result.append(Properties(shape, dark or grey, pattern))
    return result


def _either(value: float, low: float, below: str, high: float, above: str) -> str:
    return below if value <= low else above if value >= high else ""


def _pattern(stripes: float, texture: float) -> str:
    if stripes > 30:
        return "striped"
    if texture > 20:
        return "patterned"
    return "plain" if texture < 9 and stripes < 20 else ""


def _stripes(
    images: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """How much rows of pixels differ from the mean of the rows above and below."""
    count = inside.sum(2)
    lines = (images * inside).sum(2) / np.maximum(count, 1)
    bend = np.abs(2 * lines[:, 1:-1] - lines[:, :-2] - lines[:, 2:])
    broad = count > 4
    counted = broad[:, 1:-1] & broad[:, :-2] & broad[:, 2:]
    result: npt.NDArray[np.float32] = (bend * counted).sum(1) / np.maximum(counted.sum(1), 1)
    return result


def _texture(
    images: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """How much pixels differ from the mean of their 3x3 neighbourhood, away from the edges."""
    core = inside
    for _ in range(2):
        core = core & np.roll(core, 1, 1) & np.roll(core, -1, 1)
        core = core & np.roll(core, 1, 2) & np.roll(core, -1, 2)
    around = [np.roll(images, (down, right), (1, 2)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    rough = np.abs(images - np.mean(around, axis=0))
    result: npt.NDArray[np.float32] = (rough * core).sum((1, 2)) / np.maximum(core.sum((1, 2)), 1)
    return result


def phrase(noun: str, *words: str, article: bool = True) -> str:
    """Words before a noun, such as "an old dress"; empty words are left out."""
    said = " ".join(word for word in (*words, noun) if word)
    if noun in PLURALS or not article:
        return said
    return ("an " if said[0] in "aeiou" else "a ") + said


def caption(label: int, properties: Properties, rng: random.Random) -> str:
    """A random caption of an image, which mentions some of its properties."""
    words = [
        getattr(properties, name) if rng.random() < share else ""
        for name, share in MENTIONED.items()
    ]
    noun = rng.choice(NOUNS[CLASS_NAMES[label]])
    return phrase(noun, *words, article=rng.random() >= BARE)


def prompts() -> list[str]:
    """A prompt for each class, such as "a bag"."""
    return [phrase(NOUNS[name][0]) for name in CLASS_NAMES]
