from pathlib import Path
from typing import Any

from click.testing import CliRunner

from benchmarks.pages.__main__ import main
from benchmarks.records import write_entries

VARIANT = {
    "head_calls": 300,
    "iterations": 64,
    "seconds_an_image": {"median": 12.0},
    "cpu_seconds_an_image": 20.0,
    "parts": {"backbone": 2.0, "head": 9.5},
}
MACHINE = {"machine": {"load": 0.25}, "date": "2000-01-02T03:04:05"}
MOMENT = {"date": "2000-01-03T03:04:05", "load": 0.75}
COSTS: dict[str, Any] = {
    **MACHINE,
    "variants": [
        {**VARIANT, "options": {"steps": "50:5", "strategy": "linear"}},
        {**VARIANT, "options": {"steps": "50:50", "strategy": "fixed"}, "head_calls": 750},
    ],
}
SIZE: dict[str, Any] = {
    **MOMENT,
    "precision": "fp32",
    "weights": 943_000_000,
    "plan_bytes": 3_772_000_000,
    "export_seconds": 61.5,
    "export_cpu_seconds": 44.0,
    "export_peak_bytes": 5 << 30,
    "difference": None,
    "load_seconds": 4.5,
    "seconds": {"total": 33.5},
    "run_peak_bytes": None,
    "head_calls": 11,
}


def make(results: Path) -> tuple[int, str, Path]:
    docs = results / "docs"
    options = ["--only", "families", "--results", str(results), "--docs", str(docs)]
    result = CliRunner().invoke(main, options)
    return result.exit_code, result.output, docs / "families.md"


def test_the_page_holds_every_record(tmp_path: Path) -> None:
    write_entries(tmp_path / "family_costs.json", "family_costs", {"xar_b": COSTS}, ["xar_b"])
    write_entries(tmp_path / "official_sizes.json", "official_sizes", {"mar_h": SIZE}, ["mar_h"])
    (tmp_path / "families.md").write_text("## Notes\n\nA note.\n")
    code, output, page = make(tmp_path)
    assert code == 0, output
    text = page.read_text()
    assert "| xar_b | DiSA 50:5 | 64 | 300 | 1.00x | 12 | 1.00x | 20 | 1.00x | 2 | 9.5 |" in text
    assert "| xar_b | fixed 50 | 64 | 750 | 2.50x |" in text
    assert (
        "| mar_h | fp32 | 943 | 3.77 | 61.5 | 44 | 5.00 | not checked | 4.5 | 33.5 | - | 11 |"
        in text
    )
    assert "2000-01-03, load average 0.75 to 0.75" in text
    assert "python -m benchmarks.family_costs -o" in text
    assert "What is computed once" not in text
    assert "Not measured: mar_b, flowar_s, flowar_l, harmon_0.5b." in text
    assert "Not measured: mar_b, mar_l, harmon_0.5b," in text
    assert text.endswith("A note.\n")


def test_without_records(tmp_path: Path) -> None:
    code, output, page = make(tmp_path)
    assert code == 1
    assert "there are no records of families" in output
    assert not page.exists()
