"""Prompts of several caches in one."""

import numpy as np

from disa.runtime.families.conditions.prompt_cache import PromptCache


def cache(first: int, *lengths: int) -> PromptCache:
    """Keys are 10 times the prompt's number plus the place of the token, and 99 in the padding."""
    longest = max(lengths)
    keys = np.full((2, len(lengths), 3, longest, 4), 99.0, np.float32)
    for row, length in enumerate(lengths):
        keys[:, row, :, :length] = 10 * (first + row) + np.arange(length)[:, None]
    return PromptCache({"key": keys, "value": -keys}, np.array(lengths))


def test_used_prompts_are_joined_once() -> None:
    one, other = cache(0, 2, 1, 4), cache(3, 3, 1)
    found, rows = PromptCache.joined([(one, (1, 0)), (other, (0,)), (one, (0, 1))])
    assert rows == [(1, 0), (2,), (0, 1)]
    assert found.length.tolist() == [2, 1, 3]
    keys = found.arrays["key"]
    assert keys.shape == (2, 3, 3, 3, 4)
    for row, content in enumerate(([0, 1], [10], [30, 31, 32])):
        np.testing.assert_array_equal(keys[1, row, 2, : len(content), 3], content)
    np.testing.assert_array_equal(found.arrays["value"], -keys)


def test_a_cache_is_cut_to_its_longest_used_prompt() -> None:
    found, rows = PromptCache.joined([(cache(0, 2, 5), (0,)), (cache(2, 1), (0,))])
    assert rows == [(0,), (1,)]
    np.testing.assert_array_equal(found.arrays["key"][0, :, 0, :, 0], [[0, 1], [20, 0]])


def test_an_empty_cache_has_no_prompts() -> None:
    assert (dict(PromptCache().arrays), len(PromptCache().length)) == ({}, 0)
