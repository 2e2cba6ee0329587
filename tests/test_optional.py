import pytest

from disa.errors import DisaError, MissingDependency, OutOfMemory
from disa.optional import first_line, import_failed, is_memory_failure


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ModuleNotFoundError("No module named 'onnx'"), MissingDependency, "disa[export]"),
        (ImportError("undefined symbol: x"), DisaError, "--force-reinstall 'disa[export]'"),
        (ImportError("libx.so: failed to map segment from shared object"), OutOfMemory, "ulimit"),
    ],
)
def test_why_a_package_cannot_be_imported(
    error: ImportError, kind: type[DisaError], says: str
) -> None:
    found = import_failed(error, "onnx", "export")
    assert type(found) is kind
    assert says in str(found)
    assert "onnx" in str(found)


def test_a_cause_may_be_a_lack_of_memory() -> None:
    error = RuntimeError("it failed")
    error.__cause__ = MemoryError()
    assert is_memory_failure(error)
    assert not is_memory_failure(RuntimeError("it failed"))


def test_the_first_line_of_a_message() -> None:
    assert first_line(ValueError("\none\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("x" * 500)) == "x" * 300
