"""Inputs of graphs against the counts of the manifest."""

from pathlib import Path
from typing import Any

import pytest

from disa.engines.plan.plan import Plan
from disa.errors import DamagedFile
from disa.runtime.families.signatures import check_signature


@pytest.mark.parametrize(
    ("tensor", "shape", "actual"),
    [
        ("x", ("rows", 5), r"x float32\[rows, 4\]"),
        ("x", ("batch", 4), r"x float32\[rows, 4\]"),
        ("y", ("rows", 4), "no such input"),
    ],
)
def test_what_does_not_fit_is_told(
    tensor: str, shape: tuple[Any, ...], actual: str, plan_path: Path
) -> None:
    with Plan.open(plan_path) as plan:
        check_signature(plan, {"head": {"x": ("rows", 4), "step": ("rows",)}, "shuffle": {}})
        stated = ", ".join(map(str, shape))
        told = (
            rf"the graph head takes {tensor} \[{stated}\], and it has {actual}: "
            "export the checkpoint again"
        )
        with pytest.raises(DamagedFile, match=told):
            check_signature(plan, {"head": {tensor: shape}})
