"""Checks an untrusted tokenizer.json before the tokenizers library reads it.

The library is safe for any JSON, but a tokenizer can let it turn a short prompt into text of any
length: each rule that replaces text can multiply it.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ....errors import DamagedFile

MAX_BYTES = 64 << 20
MAX_DEPTH = 16
MAX_RULES = 64
"""Most parts of a normaliser, a pre-tokenizer and so on; published tokenizers have at most ten."""
MAX_TEXT = 4096
"""Most letters of a pattern or a replacement."""
MAX_GROWTH = 64
"""Largest factor by which the replacing rules together may lengthen a prompt."""
RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_tokenizer(data: bytes | memoryview) -> None:
    """Check a tokenizer.

    Raises:
        DamagedFile: `data` is not JSON, or has rules that no real tokenizer has.
    """
    if len(data) > MAX_BYTES:
        raise _unfit(f"it has {len(data)} bytes, but at most {MAX_BYTES} are allowed")
    try:
        content = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise _unfit("it is not valid JSON") from error
    if not isinstance(content, dict):
        raise _unfit("it is not a JSON object")
    _check_model(content.get("model"))
    growth = 1
    for section in RULES:
        rules = list(_objects(content.get(section), MAX_DEPTH))
        if len(rules) > MAX_RULES:
            raise _unfit(f"its {section} has {len(rules)} rules")
        for rule in rules:
            if any(isinstance(text, str) and len(text) > MAX_TEXT for text in rule.values()):
                raise _unfit(f"its {section} has a text of more than {MAX_TEXT} letters")
        growth *= math.prod(_growth(rule) for rule in rules)
    if growth > MAX_GROWTH:
        raise _unfit(f"its rules can make a text {growth} times as long")


def check_merges(vocabulary: Mapping[str, Any], merges: Iterable[Any], prefix: str = "") -> None:
    """Check that the tokens of every merge, and its result, are in the vocabulary.

    The library assumes this, and panics otherwise.

    Args:
        merges: pairs of tokens, or texts with a blank between the two.
        prefix: prefix of second tokens, which a merge omits.

    Raises:
        DamagedFile: a token is not in the vocabulary.
    """
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _unfit(f"a merge of its model is not two tokens: {str(merge)[:40]!r}")
        first, second = pair
        known = isinstance(first, str) and isinstance(second, str) and second.startswith(prefix)
        if not known or any(
            token not in vocabulary for token in (first, second, first + second[len(prefix) :])
        ):
            raise _unfit(f"a merge of its model has unknown tokens: {str(merge)[:40]!r}")


def _check_model(model: Any) -> None:
    if not isinstance(model, dict):
        raise _unfit("it has no model")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    prefix = model.get("continuing_subword_prefix") or ""
    if isinstance(vocabulary, dict) and isinstance(merges, list) and isinstance(prefix, str):
        check_merges(vocabulary, merges, prefix)


def _growth(rule: Mapping[str, Any]) -> int:
    """The largest number of letters that a rule makes of one letter."""
    kind = rule.get("type")
    text = rule.get({"Replace": "content", "Prepend": "prepend"}.get(str(kind), ""))
    return max(1, len(text)) if isinstance(text, str) else 1


def _objects(item: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    if depth < 0:
        raise _unfit("its rules are nested too deeply")
    if isinstance(item, dict):
        yield item
        item = list(item.values())
    if isinstance(item, list):
        for part in item:
            yield from _objects(part, depth - 1)


def _unfit(why: str) -> DamagedFile:
    return DamagedFile(
        f"the tokenizer is not usable: {why}: use the one that its language model came with"
    )
