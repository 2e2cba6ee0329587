import pytest

from disa.exporter.checkpoints.tensor_names import looks_averaged


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ema", True), ("EMA", True), ("model_ema", True), ("emaModel", True), ("swa_model", True),
        ("WeightAveraging", True), ("shadow_params", True), ("avg_model", True),
        ("schema", False), ("email", False), ("exp_avg_sq", False), ("square_avg", False),
        ("time_embed", False), ("model", False),
    ],
)  # fmt: skip
def test_names_of_averages(name: str, expected: bool) -> None:
    assert looks_averaged(name) == expected
