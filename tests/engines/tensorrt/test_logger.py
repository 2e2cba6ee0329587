import pytest

from disa.engines.tensorrt.logger import Messages, build_error, collect, last_error, logger_of

from ..gpu.fake_device import FakeDevice
from .fake_tensorrt import Severity, fake_module

WORKSPACE = (
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: enumerate_tactics] "
    "Tactic Selection: no tactics to implement the operation within workspace limit. Consider "
    "increase the allowed workspace size if applicable.; [tactic.cpp:264: run] Error during tactic "
    "selection. In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)"
)
NO_NODE = "Error Code 10: Internal Error (Could not find any implementation for node /head/MatMul.)"


@pytest.mark.parametrize(
    ("message", "workspace", "wanted"),
    [
        ("Unexpected exception std::bad_alloc", None, "not enough memory"),
        ("CUDA error 2 for 5000-byte allocation: out of memory", None, "not enough memory"),
        (NO_NODE, None, "not enough memory"),
        (NO_NODE, 1 << 20, "needs more workspace than 1 MiB"),
        (WORKSPACE, 2 << 20, "needs more workspace than 2 MiB: give more with --workspace"),
        ("Dynamic input tensor x is missing dimensions in profile 0.", None, "could not be built"),
    ],
)
def test_failures_are_called_by_their_names(
    message: str, workspace: int | None, wanted: str
) -> None:
    text = str(
        build_error(Messages(errors=["an earlier one", message]), "the graph head", workspace)
    )
    assert "the graph head" in text
    assert wanted in text


def test_places_in_foreign_sources_are_left_out() -> None:
    text = last_error(Messages(errors=[WORKSPACE]))
    assert "no tactics to implement" in text
    assert "/_src" not in text
    assert ".cpp" not in text
    assert last_error(Messages()) == "TensorRT gave no reason"
    assert len(last_error(Messages(errors=["x" * 1000]))) == 300


def test_messages_go_to_the_innermost_block() -> None:
    trt = fake_module(FakeDevice(), rtx=False, version="1")
    logger = logger_of(trt)
    assert logger_of(trt) is logger
    with collect(trt) as outer:
        logger.log(Severity.WARNING, "careful")
        with collect(trt) as inner:
            logger.log(Severity.ERROR, "broken")
            logger.log(Severity.INTERNAL_ERROR, "very")
            logger.log(Severity.VERBOSE, "chatter")
        logger.log(Severity.INFO, "done")
    assert inner == Messages(errors=["broken", "very"])
    assert outer == Messages(warnings=["careful"], information=["done"])
