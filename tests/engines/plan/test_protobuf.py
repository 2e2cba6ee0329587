import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.engines.plan import protobuf
from disa.engines.plan.protobuf import Damaged, fields, framed, integers, read_varint


@given(st.integers(0, 2**63), st.integers(1, 2**20))
def test_numbers(value: int, number: int) -> None:
    data = memoryview(protobuf.integer(number, value))
    ((found, body, whole),) = fields(data)
    assert (found, body) == (number, None)
    assert integers(body, whole) == [value]
    assert whole == data


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_contents(contents: list[bytes]) -> None:
    data = b"".join(framed(3 + index, content) for index, content in enumerate(contents))
    found = [(number, bytes(body or b"")) for number, body, _ in fields(memoryview(data))]
    assert found == [(3 + index, content) for index, content in enumerate(contents)]


def test_packed_numbers_and_fixed_ones() -> None:
    packed = memoryview(framed(1, b"\x05\xac\x02\x00"))
    ((_, body, whole),) = fields(packed)
    assert integers(body, whole) == [5, 300, 0]
    fixed = memoryview(b"\x0d1234" + b"\x1112345678" + b"\x08\x01")
    assert [(n, body, len(whole)) for n, body, whole in fields(fixed)] == [
        (1, None, 5),
        (2, None, 9),
        (1, None, 2),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a\x05abc", "cut short"),
        (b"\x0d123", "cut short"),
        (b"\x111234567", "cut short"),
        (b"\x08", "cut short"),
        (b"\x80", "cut short"),
        (b"\x0b", "wire type 3"),
        (b"\x08" + b"\xff" * 11, "endless number"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "endless number"),
        (b"\xaa\x80\x80\x80\x10\x00", "field number"),
        (b"\xaa\x80\x80\x80\x80\x01\x00", "field number"),
    ],
)
def test_damage(data: bytes, words: str) -> None:
    with pytest.raises(Damaged, match=words):
        list(fields(memoryview(data)))


def test_the_longest_number() -> None:
    assert read_varint(memoryview(b"\xff" * 9 + b"\x01x"), 0) == (2**64 - 1, 10)


def test_text() -> None:
    assert protobuf.text(memoryview("ö".encode())) == "ö"
    with pytest.raises(Damaged, match="UTF-8"):
        protobuf.text(memoryview(b"\xff"))
    assert framed(1, "ö") == framed(1, "ö".encode())
