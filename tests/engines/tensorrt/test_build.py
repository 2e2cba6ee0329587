import os
from pathlib import Path
from typing import Any

import onnx
import pytest

from disa.engines.gpu import device
from disa.engines.gpu.profile import Range, dimensions, graph_profile
from disa.engines.plan.plan import Plan
from disa.engines.tensorrt import builder, flavour
from disa.engines.tensorrt.build import (
    DEFAULT_TARGETS,
    EngineOptions,
    add_engines,
    build_engines,
    engines_by_default,
    parse_gpus,
    unpacked,
)
from disa.errors import DisaError

from ..gpu.fake_device import FakeDevice
from .fake_tensorrt import fake_flavour
from .graphs import write_plan

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_120")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "p.plan", "fp16", names=("head", "decoder"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("sm_89", (89,)),
        ("sm_120,sm_89", (89, 120)),
        ("8.9, 12.0,89", (89, 120)),
        ("SM86", (86,)),
    ],
)
def test_architectures(text: str, wanted: tuple[int, ...]) -> None:
    assert parse_gpus(text) == wanted


@pytest.mark.parametrize("text", ["", "rtx4090", "sm_", "8", "sm_89,", "1234"])
def test_wrong_architectures(text: str) -> None:
    with pytest.raises(DisaError, match="is not a GPU architecture: write it as sm_89"):
        parse_gpus(text)


def test_a_plan_with_engines_goes_round(plan: Path, tmp_path: Path) -> None:
    options = EngineOptions(gpus=(80, 86, 89, 120), batch=Range(1, 2, 4))
    built = add_engines(plan, options, tmp_path / "with.plan")
    with Plan.open(plan) as before, Plan.open(tmp_path / "with.plan") as after:
        after.check()
        assert before.manifest.engines == ()
        assert after.manifest.graphs == before.manifest.graphs
        assert after.manifest.engines == tuple(new.info for new in built)
        for new in built:
            info = new.info
            assert info.backend == "tensorrt-rtx"
            assert info.version == flavour.load("tensorrt-rtx").version
            assert (info.precision, info.architectures) == ("fp16", ARCHITECTURES)
            assert info.details["least_sm"] == 80
            assert info.details["cuda"].isdigit()
            assert info.details["memory"]["activations"] > 0
            assert bytes(after.read(info.member)) == new.path.read_bytes()
            assert new.size == len(after.read(info.member))
            ranges = dimensions(before.manifest.tokens, {"num_iterations": 4}, options.batch)
            graph = after.graph(info.graph)
            assert info.profiles == (graph_profile(info.graph, graph.inputs, ranges),)


def test_what_has_not_changed_is_not_built_again(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(gpus=(89,))
    first = add_engines(plan, options)
    monkeypatch.setattr(builder, "build", None)
    second = add_engines(plan, options)
    assert [new.cached for new in first + second] == [False, False, True, True]
    assert [new.info for new in first] == [new.info for new in second]
    assert [new.seconds for new in first] == [new.seconds for new in second]
    with Plan.open(plan) as opened:
        opened.check()
        assert len(opened.manifest.engines) == 2


def test_every_change_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[object] = []

    def note(*_: object) -> builder.Built:
        return builder.Built(b"engine", {})

    monkeypatch.setattr(builder, "build", note)

    def key(path: Path, **options: object) -> None:
        given = {"gpus": (89,), "batch": Range(1, 2, 4), **options}
        with Plan.open(path) as opened:
            (built,) = build_engines(opened, EngineOptions(**given))  # type: ignore[arg-type]
        keys.append((built.info.details["key"], built.cached))

    def plan_in(name: str, precision: str = "fp16") -> Path:
        (tmp_path / name).mkdir()
        return write_plan(tmp_path / name / "p.plan", precision, names=("head",))

    plan = plan_in("a")
    key(plan)
    key(plan, gpus=(89, 120))
    key(plan, batch=Range(1, 2, 5))
    key(plan, workspace=1 << 30)
    key(plan, optimization_level=1)
    key(plan_in("precision", "bf16"))
    changed = flavour.load("tensorrt-rtx")
    monkeypatch.setattr(
        flavour, "load", lambda *_, **__: flavour.Flavour(changed.name, "0.1", changed.trt)
    )
    key(plan)
    assert len(set(keys)) == len(keys)
    assert not any(cached for _, cached in keys)  # type: ignore[misc]


def test_other_weights_are_another_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "build", lambda *_: builder.Built(b"engine", {}))
    save = onnx.save_model

    def save_changed(model: onnx.ModelProto, path: Path, **options: object) -> None:
        save(model, path, **options)
        data = path.with_suffix(".data")
        content = bytearray(data.read_bytes())
        content[0] ^= 1
        data.write_bytes(content)

    keys = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = write_plan(tmp_path / name / "p.plan", names=("head",))
        monkeypatch.setattr(onnx, "save_model", save_changed)
        with Plan.open(path) as opened:
            graphs = {m.sha256 for n, m in opened.manifest.members.items() if n.endswith("onnx")}
            (built,) = build_engines(opened, EngineOptions(gpus=(89,)))
        keys.append((built.info.details["key"], graphs))
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]


def test_engines_for_the_same_gpus_are_replaced_and_others_stay(plan: Path) -> None:
    add_engines(plan, EngineOptions(gpus=(89,)))
    add_engines(plan, EngineOptions(gpus=(120,)))
    add_engines(plan, EngineOptions(gpus=(89,), batch=Range(1, 1, 1)))
    with Plan.open(plan) as opened:
        opened.check()
        engines = [(e.graph, e.architectures) for e in opened.manifest.engines]
    assert engines == [
        ("head", ("sm_120",)),
        ("decoder", ("sm_120",)),
        ("head", ("sm_89",)),
        ("decoder", ("sm_89",)),
    ]
    add_engines(plan, EngineOptions(gpus=(89, 120)))
    with Plan.open(plan) as opened:
        opened.check()
        assert [e.architectures for e in opened.manifest.engines] == [("sm_89", "sm_120")] * 2


def test_without_a_gpu_all_are_built_for(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "present", lambda: None)
    with Plan.open(plan) as opened:
        built = build_engines(opened, EngineOptions())
    assert built[0].info.architectures == ARCHITECTURES
    assert DEFAULT_TARGETS == (80, 86, 89, 120)


def test_with_a_gpu_it_is_built_for_that(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "present", lambda: FakeDevice(sm=86))
    with Plan.open(plan) as opened:
        assert build_engines(opened, EngineOptions())[0].info.architectures == ("sm_86",)
    monkeypatch.setattr(device, "present", lambda: FakeDevice(sm=90))
    with Plan.open(plan) as opened, pytest.raises(DisaError, match="cannot build for sm_90"):
        build_engines(opened, EngineOptions(engine="tensorrt-rtx"))


def test_full_tensorrt_builds_for_the_gpu_that_is_there(
    plan: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    gpu = FakeDevice(sm=90)
    made = fake_flavour(gpu, rtx=False)
    timings: list[Path] = []

    def build(*arguments: Any) -> builder.Built:
        timings.append(arguments[3])
        return builder.Built(b"engine", {})

    monkeypatch.setattr(flavour, "find", lambda name: made)
    monkeypatch.setattr(builder, "build", build)
    monkeypatch.setattr(device, "present", lambda: None)
    with Plan.open(plan) as opened:
        with pytest.raises(DisaError, match="needs the GPU that it builds for"):
            build_engines(opened, EngineOptions(engine="tensorrt"))
        monkeypatch.setattr(device, "present", lambda: gpu)
        info = build_engines(opened, EngineOptions(engine="tensorrt"))[0].info
        with pytest.raises(DisaError, match="builds only for the GPU"):
            build_engines(opened, EngineOptions(engine="tensorrt", gpus=(89,)))
    assert (info.backend, info.architectures) == ("tensorrt", ("sm_90",))
    assert info.details["device"] == "Fake GPU"
    assert timings[0] == cache / "timing" / "tensorrt-99.1-Fake_GPU.cache"


def test_a_failure_leaves_the_plan_as_it_was(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = plan.read_bytes()

    def fail(*_: object) -> object:
        raise DisaError("no luck")

    monkeypatch.setattr(builder, "build", fail)
    with pytest.raises(DisaError, match="no luck"):
        add_engines(plan, EngineOptions(gpus=(89,)))
    assert plan.read_bytes() == content
    assert [path.suffix for path in plan.parent.glob("*.partial")] == []


def test_a_cache_without_room_is_told(plan: Path, cache: Path) -> None:
    cache.write_text("not a folder")
    with Plan.open(plan) as opened, pytest.raises(DisaError, match="set DISA_CACHE to a folder"):
        build_engines(opened, EngineOptions(gpus=(89,)))


def _damage(plan: Path) -> None:
    """Change a byte of the head's weights."""
    with Plan.open(plan) as opened:
        place = opened.offset(opened.graph("head").data[0])
    with plan.open("r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ 1]))


@pytest.mark.parametrize("while_building", [False, True])
def test_no_engine_is_kept_for_weights_that_it_was_not_built_from(
    plan: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, while_building: bool
) -> None:
    """It would be used for the undamaged plan, whose manifest is the same."""

    def build(*_: object) -> builder.Built:
        if while_building:
            _damage(plan)
        return builder.Built(b"engine", {})

    monkeypatch.setattr(builder, "build", build)
    if not while_building:
        _damage(plan)
    words = "was replaced or changed" if while_building else "checksum of .* does not match"
    with Plan.open(plan) as opened, pytest.raises(DisaError, match=words):
        build_engines(opened, EngineOptions(gpus=(89,)))
    assert not list(cache.rglob("*.engine"))


@pytest.mark.parametrize("broken", [(), ("symlink",), ("symlink", "link")])
def test_weights_are_linked_and_copied_only_if_they_must_be(
    plan: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("not permitted")

    for name in broken:
        monkeypatch.setattr(os, name, fail)
    with Plan.open(plan) as opened:
        graph = opened.graph("head")
        with unpacked(opened, graph) as path:
            model = onnx.load(path, load_external_data=False)
            places = {e.key: e.value for t in model.graph.initializer for e in t.external_data}
            linked = path.with_name(places["location"])
            assert linked.is_symlink() == (not broken)
            offset, size = int(places["offset"]), int(places["length"])
            weights = linked.read_bytes()[offset : offset + size]
            folder = path.parent
        assert weights in bytes(opened.read(graph.data[0]))
    assert not folder.exists()


def test_weights_are_copied_for_a_parser_that_follows_no_links(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def build(chosen: object, source: builder.Source, *rest: object) -> builder.Built:
        links = [path for path in source.path.parent.iterdir() if path.is_symlink()]
        read.append((source.name, bool(links)))
        if links or source.name == "odd":
            raise builder.UnreadableGraph("no link is followed")
        return builder.Built(b"engine", {})

    monkeypatch.setattr(builder, "build", build)
    with Plan.open(plan) as opened:
        built = build_engines(opened, EngineOptions("tensorrt-rtx", (89,)))
        with_weights = [name for name, graph in opened.manifest.graphs.items() if graph.data]
    assert len(built) == len(opened.manifest.graphs)
    assert [name for name, linked in read if linked] == with_weights
    assert [name for name, linked in read if not linked] == list(opened.manifest.graphs)


def test_no_room_to_unpack_is_told(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with (
        Plan.open(plan) as opened,
        pytest.raises(DisaError, match=r"No space left on device.*set TMPDIR"),
        unpacked(opened, opened.graph("head")),
    ):
        pass


def test_engines_are_built_unasked_only_where_they_can_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for sm, wanted in ((None, False), (89, True), (90, False)):
        gpu = None if sm is None else FakeDevice(sm=sm)
        monkeypatch.setattr(device, "present", lambda gpu=gpu: gpu)
        monkeypatch.setattr(flavour, "load", lambda: flavour.find("tensorrt-rtx"))
        assert engines_by_default() == wanted
    monkeypatch.setattr(flavour, "load", lambda: fake_flavour(FakeDevice(), rtx=False))
    assert engines_by_default()
