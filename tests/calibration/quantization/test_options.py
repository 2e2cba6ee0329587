from typing import Any

import pytest

from disa.calibration.quantization.options import QuantizeOptions
from disa.calibration.quantization.qdq import Format
from disa.errors import InvalidRequest


@pytest.mark.parametrize("form", Format)
def test_the_form_as_text(form: Format) -> None:
    assert QuantizeOptions(form=str(form)).form is form  # type: ignore[arg-type]


def test_one_prompt_is_not_a_list_of_letters() -> None:
    assert QuantizeOptions(prompts="a boot").prompts == ("a boot",)
    assert QuantizeOptions(prompts=["a boot", "a bag"]).prompts == ("a boot", "a bag")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"form": "int4"}, "one of int8, fp8, not 'int4'"),
        ({"images": 0}, "calibration images must be a whole number at least 1, not 0"),
        ({"images": 2.5}, "calibration images"),
        ({"tolerance": float("nan")}, "the tolerance must be a number above 0, not nan"),
        ({"token_tolerance": -1}, "the token tolerance must be"),
        ({"spread_tolerance": float("nan")}, "the spread tolerance must be"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        QuantizeOptions(**given)
