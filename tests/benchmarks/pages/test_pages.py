"""Every measured page in docs/ says what its record says, and nothing else."""

import json

import pytest

from benchmarks.pages.__main__ import DOCS, PAGES
from benchmarks.pages.serving import line
from benchmarks.records import RESULTS
from disa.bench.report import figure


@pytest.mark.parametrize("name", PAGES)
def test_a_made_page_is_that_of_its_records(name: str) -> None:
    made = PAGES[name](RESULTS)
    found = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert found == made, f"docs/{name}.md is old: run python -m benchmarks.pages --only {name}"


README_ROWS = {
    "official loop, fp32": "official fp32",
    "official loop, bf16 autocast": "official bf16 autocast",
    "the same behind `torch.compile`": "official bf16 autocast compiled",
    "disa, fp32": "disa cpu",
    "disa, bf16 (`--engine openvino`)": "disa openvino bf16",
    "disa, [int8](docs/quantization.md), rest bf16": "disa openvino int8",
    "disa, bf16, [a backbone that remembers](docs/cached-backbone.md) (approximate)": (
        "disa openvino bf16 refresh 9:5"
    ),
    "disa, int8, a backbone that remembers (approximate)": "disa cpu int8 refresh 9:5",
}
"""The rows of the README's table of MAR-B, and their contenders."""


def test_the_readme_has_the_times_of_their_record() -> None:
    contenders = json.loads((RESULTS / "mar_b_64.json").read_text())["contenders"]
    seconds = {name: result["seconds_an_image"] for name, result in contenders.items()}
    lines = (DOCS.parent / "README.md").read_text(encoding="utf-8").replace("**", "").splitlines()
    for row, name in README_ROWS.items():
        factor = seconds["official bf16 autocast"] / seconds[name]
        assert f"| {row} | {figure(seconds[name])} | {factor:.2f}x |" in lines


def test_the_cached_backbone_has_the_times_of_their_records() -> None:
    records = [
        json.loads((RESULTS / name).read_text())["contenders"]
        for name in ("mar_b_64.json", "mar_b_64_batch_8.json")
    ]
    lines = (DOCS / "cached-backbone.md").read_text(encoding="utf-8").splitlines()
    for row, name in {
        "fp32, ONNX Runtime": "disa cpu",
        "bf16, OpenVINO": "disa openvino bf16",
        "int8, ONNX Runtime": "disa cpu int8",
        "int8, the rest bf16, OpenVINO": "disa openvino int8",
    }.items():
        cells = [
            figure(contenders[each]["seconds_an_image"])
            for contenders in records
            for each in (name, f"{name} refresh 9:5")
        ]
        assert f"| {row} | {' | '.join(cells)} |" in lines


def test_the_simulated_servers_are_those_of_their_record() -> None:
    entries = json.loads((RESULTS / "serving_simulation.json").read_text())["entries"]
    lines = (DOCS / "serving.md").read_text(encoding="utf-8").splitlines()
    shown = [each for each in lines if each.startswith(("| 50% |", "| 80% |"))]
    assert len(shown) == 10
    assert set(shown) <= {line(entry) for entry in entries}


def test_the_measured_servers_are_those_of_their_records() -> None:
    page = (DOCS / "serving.md").read_text(encoding="utf-8")
    for kind, name in (("equal", "serving_fashion"), ("mixed", "serving_fashion_mixed")):
        entries = json.loads((RESULTS / f"{name}.json").read_text())["entries"]
        assert len(entries) == 8
        for entry in entries:
            assert line(entry, f"{kind}, {entry['load']:.0%}") in page


def test_the_built_engines_are_those_of_their_record() -> None:
    builds = json.loads((RESULTS / "build_sizes.json").read_text())["builds"]
    page = (DOCS / "tensorrt.md").read_text(encoding="utf-8")
    assert len(builds) == 3
    for build in builds:
        name = build["size"].replace("_", "-").upper()
        backbone, head = (f"{build['graphs'][part]['mib']:.0f}" for part in ("backbone", "head"))
        assert (
            f"| {name} | {build['build_seconds']} | {build['build_cpu_seconds']} "
            f"| {build['engine_mib']} | {backbone} | {head} | {build['plan_mib']} "
            f"| {build['peak_memory_mib']} |"
        ) in page
