import pytest

from disa.bench.variant import parse_engines, parse_numbers, parse_step_counts, variants
from disa.errors import DisaError


def test_variants_are_all_combinations() -> None:
    found = variants(
        ["cpu", "auto"], [8, 1], ["50:5", "9:2"], [None], {"guidance_scale": 2.0, "size": None}
    )
    assert len(found) == 8
    assert [variant.batch_size for variant in found] == [1] * 4 + [8] * 4
    assert found[0].options == {"guidance_scale": 2.0, "steps": "50:5"}
    assert parse_numbers("1, 8", "batch size", 9) == [1, 8]
    assert parse_step_counts(None) == []
    assert parse_engines("cpu,openvino") == ["cpu", "openvino"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("8,,1", "empty entry"), ("8,8", "twice"), ("10", "from 1 to 9"), ("1.5", "from 1 to 9")],
)
def test_lists_of_numbers_that_are_not_valid(text: str, complaint: str) -> None:
    with pytest.raises(DisaError, match=complaint):
        parse_numbers(text, "batch size", 9)
