"""Every measured page in docs/ says what its record says, and nothing else."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.pages.__main__ import BENCH, DOCS, PAGES, RACES, main, page, read
from benchmarks.pages.tables import served
from benchmarks.pages.targets import fastest, targets
from disa.bench.report import figure


@pytest.mark.parametrize("name", PAGES)
def test_a_made_page_is_that_of_its_records(name: str) -> None:
    made, found = page(name), (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert "<!--" not in made
    assert found == made, f"docs/{name}.md is old: run python -m benchmarks.pages"


def test_pages_and_pictures_are_written(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--docs", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for made in sorted(tmp_path.rglob("*.*")):
        old = DOCS / made.relative_to(tmp_path)
        if made.suffix == ".md":
            assert made.read_bytes() == old.read_bytes()
        else:
            assert Image.open(made).size == Image.open(old).size
    assert len(list(tmp_path.rglob("*.*"))) == 6


def test_the_name_of_a_contender_says_how_it_runs() -> None:
    names = ["official fp32", "disa cpu", "disa openvino bf16", "disa cpu int8"]
    names += [f"{name} refresh 9:5" for name in names[1:]]
    seconds = {name: {"seconds_an_image": place} for place, name in enumerate(names)}
    ways = [(precision, way) for way in ("", "refresh") for precision in ("", "bf16", "int8")]
    assert [fastest({"contenders": seconds}, *way) for way in ways] == [1, 2, 3, 4, 5, 6]


def test_each_target_is_judged_on_each_processor() -> None:
    headings, rows = targets([read(name) for name in RACES], read(BENCH))
    cells = {row[0]: dict(zip(headings[1:], row[1:], strict=True)) for row in rows}
    xeon, epyc = (read(name)["machine"]["processor"] for name in ("mar_b_64_amx", "mar_b_64"))
    assert set(headings[1:]) == {xeon, epyc}
    for processor, record, judgement in (
        (xeon, "mar_b_64_batch_8_amx", "met"),
        (epyc, "mar_b_64_batch_8", "not met"),
    ):
        seconds = seconds_of(record)
        cached = [value for name, value in seconds.items() if " int8 refresh" in name]
        ratio = seconds["official bf16 autocast"] / min(cached)
        (cell,) = (
            row for what, row in cells.items() if "int8 with a cached" in what and "batch 8" in what
        )
        assert cell[processor] == f"{ratio:.2f} times, {judgement}"


def lines_of(page: str) -> list[str]:
    """The lines of a page in docs/ without emphasis."""
    return (DOCS / page).read_text(encoding="utf-8").replace("**", "").splitlines()


README_ROWS = {
    "official loop, fp32": "official fp32",
    "official loop, bf16 autocast": "official bf16 autocast",
    "the same with `torch.compile`": "official bf16 autocast compiled",
    "disa, fp32": "disa cpu",
    "disa, bf16 (`--engine openvino`)": "disa openvino bf16",
    "disa, [int8](docs/quantization.md), rest bf16": "disa openvino int8",
    "disa, bf16, [a cached backbone](docs/cached-backbone.md) (approximate)": (
        "disa openvino bf16 refresh 9:5"
    ),
    "disa, int8, a cached backbone (approximate)": "disa cpu int8 refresh 9:5",
}
"""The rows of the README's table of MAR-B, and their contenders."""


def seconds_of(record: str) -> dict[str, float]:
    """Seconds an image of the contenders of a race."""
    contenders = read(record)["contenders"]
    return {name: result["seconds_an_image"] for name, result in contenders.items()}


def test_the_readme_has_the_times_of_their_record() -> None:
    seconds = seconds_of("mar_b_64_amx")
    lines = lines_of("../README.md")
    for row, name in README_ROWS.items():
        factor = seconds["official bf16 autocast"] / seconds[name]
        assert f"| {row} | {figure(seconds[name])} | {factor:.2f}x |" in lines


def test_the_readme_has_the_times_of_other_processors() -> None:
    bf16, avx2, default = (
        {name: figure(value) for name, value in seconds_of(record).items()}
        for record in ("mar_b_64", "mar_b_64_avx2", "mar_b_256_amx")
    )
    at_eight = seconds_of("mar_b_64_batch_8_amx")
    fastest_at_eight = at_eight["disa openvino int8 refresh 9:5"]
    factor = at_eight["official bf16 autocast"] / fastest_at_eight
    text = " ".join(lines_of("../README.md"))
    for sentence in (
        f"an image takes {bf16['official bf16 autocast']} s in the official loop with bf16 "
        f"autocast, {bf16['disa openvino bf16']} s in disa in bf16 and "
        f"{bf16['disa openvino int8']} s in int8.",
        f"an image takes {avx2['official fp32']} s in the official loop in fp32, "
        f"{avx2['disa cpu']} s in disa in fp32 and {avx2['disa cpu int8']} s in int8, and with a "
        f"cached backbone (approximate) {avx2['disa cpu refresh 9:5']} s and "
        f"{avx2['disa cpu int8 refresh 9:5']} s.",
        f"256 iterations of 100 steps in fp32, takes {default['official fp32']} s.",
        f"a cached backbone takes {figure(fastest_at_eight)} s an image, {factor:.1f} times as "
        "fast as the official loop with bf16 autocast.",
    ):
        assert sentence in text


def test_the_readme_has_the_factors_of_the_other_families() -> None:
    factors = [
        f"{seconds['official bf16 autocast'] / seconds['disa openvino bf16']:.1f}"
        for seconds in map(seconds_of, ("xar_b_amx", "flowar_s_amx", "harmon_0_5b_amx"))
    ]
    assert (
        f"xAR-B, FlowAR-S and Harmon-0.5B in bf16 are {factors[0]}, {factors[1]} and {factors[2]} "
        "times as fast as their official loops with bf16 autocast."
    ) in " ".join(lines_of("../README.md"))


def test_the_cached_backbone_has_the_times_of_their_records() -> None:
    lines = lines_of("cached-backbone.md")
    for names in (("mar_b_64", "mar_b_64_batch_8"), ("mar_b_64_amx", "mar_b_64_batch_8_amx")):
        records = [seconds_of(name) for name in names]
        official = [figure(seconds["official bf16 autocast"]) for seconds in records]
        assert f"| official loop, bf16 autocast | {official[0]} | | {official[1]} | |" in lines
        for row, name in {
            "fp32, ONNX Runtime": "disa cpu",
            "bf16, OpenVINO": "disa openvino bf16",
            "int8, ONNX Runtime": "disa cpu int8",
            "int8, the rest bf16, OpenVINO": "disa openvino int8",
        }.items():
            assert row_of(row, name, records) in lines


def row_of(row: str, name: str, records: list[dict[str, float]]) -> str:
    """A line of the table of the cached backbone: each race without and with it."""
    ways = (name, f"{name} refresh 9:5")
    cells = [figure(seconds[way]) for seconds in records for way in ways]
    return f"| {row} | {' | '.join(cells)} |"


def test_the_cached_backbone_has_the_times_of_a_processor_with_avx2() -> None:
    records = [seconds_of(name) for name in ("mar_b_64_avx2", "mar_b_64_batch_8_avx2")]
    lines = lines_of("cached-backbone.md")
    official = [figure(seconds["official fp32"]) for seconds in records]
    assert f"| official loop, fp32 | {official[0]} | | {official[1]} | |" in lines
    for row, name in {
        "fp32, ONNX Runtime": "disa cpu",
        "int8, ONNX Runtime": "disa cpu int8",
    }.items():
        assert row_of(row, name, records) in lines


def test_the_simulated_servers_are_those_of_their_record() -> None:
    shown = [each for each in lines_of("serving.md") if each.startswith(("| 50% |", "| 80% |"))]
    assert len(shown) == 10
    assert set(shown) <= {served(entry) for entry in read("serving_simulation")["entries"]}
    for kind, name in (
        ("equal", "cpu"),
        ("mixed", "cpu_mixed"),
        ("equal", "fashion"),
        ("mixed", "fashion_mixed"),
    ):
        for entry in read(f"serving_simulation_{name}")["entries"]:
            assert served(entry, kind) in lines_of("serving.md")


def test_the_measured_servers_are_those_of_their_records() -> None:
    lines = lines_of("serving.md")
    for kind, name, number in (
        ("equal", "serving_fashion", 6),
        ("mixed", "serving_fashion_mixed", 6),
        ("MAR-B, mixed", "serving_mar_b_mixed", 3),
    ):
        entries = read(name)["entries"]
        assert len(entries) == number
        for entry in entries:
            assert served(entry, f"{kind}, {entry['load']:.0%}") in lines


def test_the_built_engines_are_those_of_their_record() -> None:
    builds, lines = read("build_sizes")["builds"], lines_of("tensorrt.md")
    assert len(builds) == 3
    for build in builds:
        name = build["size"].replace("_", "-").upper()
        backbone, head = (f"{build['graphs'][part]['mib']:.0f}" for part in ("backbone", "head"))
        assert (
            f"| {name} | {build['build_seconds']} | {build['build_cpu_seconds']} "
            f"| {build['engine_mib']} | {backbone} | {head} | {build['plan_mib']} "
            f"| {build['peak_memory_mib']} |"
        ) in lines
