import io
import os
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.exporter.checkpoints.pickle_values import Global, Opaque, PickleError, Storage
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


def _repeated(value: bytes, kind: str, times: int, grows: bool = False) -> bytes:
    """A pickle that calls `kind` many times with a value; if it grows, with the last result."""
    module, _, name = kind.rpartition(".")
    call = f"c{module}\n{name}\n".encode() + b"h\0h\0\x86R" + b"q\0" * grows
    return value + b"q\0" + call * times + b"."


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (pickle.dumps({str(n): n for n in range(2000)}, 2)[:-1], "builtins.dict"),
        (pickle.dumps([(n, n) for n in range(2000)], 2)[:-1], "collections.OrderedDict"),
        (pickle.dumps("a" * 50_000, 2)[:-1], "_codecs.encode"),
    ],
)
def test_values_are_not_copied_without_end(value: bytes, kind: str) -> None:
    with pytest.raises(PickleError, match="copies more values"):
        read_pickle(io.BytesIO(_repeated(value, kind, 3000)))


def test_paths_do_not_grow_without_end() -> None:
    def last(times: int) -> Any:
        data = _repeated(b"\x80\2X\1\0\0\0a", "pathlib.PosixPath", times, grows=True)
        return read_pickle(io.BytesIO(data)).document

    assert len(last(11)) == 2**12 - 1
    assert isinstance(last(12), Opaque)


def test_types_inside_types_are_not_followed() -> None:
    data = b"\x80\2ctorch._tensor\n_rebuild_from_type_v2\nq\0)q\1"
    data += b"(h\0Nh\1Ntq\1" * 3000 + b"h\0h\1R."
    assert isinstance(read_pickle(io.BytesIO(data)).document, Opaque)


def test_names_of_objects_are_texts() -> None:
    """The text form of lists that contain one another has any length."""
    nested = b"\x80\4]\x94" + b"](h\0h\0e\x94" + b"X\1\0\0\0a\x93."
    with pytest.raises(PickleError, match="without a name"):
        read_pickle(io.BytesIO(nested))
    long = b"\x80\4X\0\x10\0\0" + b"a" * 4096 + b"X\1\0\0\0a\x93."
    with pytest.raises(PickleError, match="excessive length"):
        read_pickle(io.BytesIO(long))


def test_sizes_of_a_tensor_without_elements() -> None:
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\x09tQ"
    shape = pickle.dumps((0, 2**62, 8), 2)[2:-1].split(b"q")[0]
    call = b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    with pytest.raises(PickleError, match="impossible sizes"):
        read_pickle(io.BytesIO(call + b"K\0" + shape + shape + b"\x89NtR."))
