from disa.tables import markdown


def test_numbers_are_aligned_to_the_right() -> None:
    table = markdown(("model", "steps", "s"), [["mar_b", "50:5", "1.5"]], left=2)
    assert table.splitlines() == [
        "| model | steps | s |",
        "| --- | --- | ---: |",
        "| mar_b | 50:5 | 1.5 |",
    ]
