import io
import os
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.exporter.checkpoints.pickle_values import Global, PickleError, Storage
from disa.exporter.checkpoints.pickles import read_pickle


def of(data: bytes) -> set[str]:
    return {str(wanted) for wanted in read_pickle(io.BytesIO(data)).globals}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_globals_of_every_protocol(protocol: int) -> None:
    found = of(pickle.dumps([OrderedDict(a=1), os.getcwd], protocol))
    assert {"collections.OrderedDict", "posix.getcwd"} <= found


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"(ios\nsystem\n.", "os.system"),
        (b"(S'id'\nios\nsystem\n.", "os.system"),
        (b"\x80\4\x8c\2os\x94\x8c\6system\x94h\0h\1\x93.", "os.system"),
        (b"\x80\2\x82\7.", "copyreg.extension 7"),
        (b"\x80\2cbuiltins\nexec\n0N.", "builtins.exec"),
    ],
)
def test_every_way_to_ask_for_a_global(data: bytes, wanted: str) -> None:
    assert of(data) == {wanted}


def test_storages_and_length() -> None:
    pickled = b"\x80\2(X\7\0\0\0storagectorch\nHalfStorage\nX\2\0\0\x0012X\3\0\0\0cpuK\x09tQ."
    found = read_pickle(io.BytesIO(pickled + b"what follows"))
    assert found.storages == {Storage("HalfStorage", "12", 9)}
    assert found.globals == {Global("torch", "HalfStorage")}
    assert (found.protocol, found.length) == (2, len(pickled))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short or damaged"),
        (b"\x80\2", "cut short or damaged"),
        (b".", "cut short or damaged"),
        (b"h\3.", "cut short or damaged"),
        (b"t.", "cut short or damaged"),
        (b"\x80\2NQ.", "outside objects"),
        (b"\x80\2(X\7\0\0\0storageNNNNtQ.", "without type, key or size"),
        (
            b"\x80\2(X\7\0\0\0storagectorch\nHalfStorage\nX\1\0\0\x001NJ\xff\xff\xff\xfftQ.",
            "storage of -1 elements",
        ),
    ],
)
def test_what_is_no_pickle(data: bytes, reason: str) -> None:
    with pytest.raises(PickleError, match=reason):
        read_pickle(io.BytesIO(data))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(document=plain, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_ask_for_nothing_dangerous(document: Any, protocol: int) -> None:
    data = pickle.dumps(document, protocol)
    found = read_pickle(io.BytesIO(data))
    assert found.length == len(data)
    assert {str(wanted) for wanted in found.globals} <= {"_codecs.encode", "__builtin__.bytes"}


def test_every_tensor_of_torch_is_read_pickleed(tmp_path: Any) -> None:
    state = {str(n): torch.zeros(n, n) for n in range(1, 5)}
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    with (tmp_path / "c.pth").open("rb") as file:
        stream = io.BytesIO(file.read())
    read_pickles = [read_pickle(stream) for _ in range(5)]
    assert sorted(storage.elements for storage in read_pickles[3].storages) == [1, 4, 9, 16]
