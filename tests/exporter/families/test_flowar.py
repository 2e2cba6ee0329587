import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from disa.engines.open import open_session
from disa.engines.plan.plan import Plan
from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.families import flowar, mar, xar
from disa.exporter.families.configs.flowar import SIZES, defaults, official_config
from disa.exporter.graphs.graph import evaluate
from disa.exporter.graphs.precision import Precision, set_precision
from disa.exporter.layers.flow import halves, rotary_frequencies, rotary_table, rotate

from ...conftest import GOLDEN

Plans = Callable[..., Path]
State = dict[str, torch.Tensor]


def golden_state(name: str) -> State:
    return open_checkpoint(GOLDEN / name / "checkpoint.pth").state


def without_rotary(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if ".rope." not in key}


@pytest.mark.parametrize("name", ["flowar_s", "flowar_l"])
def test_sizes_are_read_from_the_tensors(name: str) -> None:
    state = golden_state(name)
    assert flowar.recognise(state)
    assert not mar.recognise(state)
    assert not xar.recognise(state)
    config = flowar.configure(state)
    expected = json.loads((GOLDEN / name / "architecture.json").read_text())
    assert {key: getattr(config, key) for key in expected} == expected
    assert flowar.configure(state, expected) == config


@pytest.mark.parametrize("name", SIZES)
def test_official_sizes_need_no_flags(name: str) -> None:
    config = official_config(name)
    with torch.device("meta"):
        state = flowar.FlowAR(config).state_dict()
    assert flowar.configure(state) == config


def test_official_defaults() -> None:
    given = {name: defaults(official_config(name)) for name in SIZES}
    assert [(d["steps"], d["guidance_scale"], d["guidance_interval"]) for d in given.values()] == [
        ("25:15", 4.2, 0.9),
        ("25:15", 2.4, 0.9),
        ("50:15", 2.4, 0.7),
    ]


def test_heads_that_nobody_tells() -> None:
    state = without_rotary(golden_state("flowar_s"))
    with pytest.raises(DisaError, match="set encoder_num_heads"):
        flowar.configure(state)
    heads = {"encoder_num_heads": 4, "decoder_num_heads": 4}
    assert flowar.configure(state, heads) == flowar.configure(golden_state("flowar_s"))
    with pytest.raises(DisaError, match="four channels for each of 3 heads"):
        flowar.configure(state, {**heads, "decoder_num_heads": 3})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"diffloss_d": 3}, "has diffloss_d 3, but the checkpoint's tensors have 2"),
        ({"cross": True}, "has cross True"),
        ({"encoder_num_heads": 8}, "has encoder_num_heads 8"),
        ({"img_size": 512}, "only supports 256"),
        ({"encoder_heads": 4}, "'encoder_heads'.*did you mean encoder_num_heads"),
    ],
)
def test_a_configuration_that_contradicts(config: dict[str, Any], told: str) -> None:
    with pytest.raises(DisaError, match=told):
        flowar.configure(golden_state("flowar_s"), config)


def test_another_model() -> None:
    state = golden_state("flowar_s")
    table = torch.zeros(1, 84, 64)
    with pytest.raises(DisaError, match=r"84 token positions.*341 \(16x16 latents\)"):
        flowar.configure({**state, "encoder_pos_embed_learned": table})
    key = "encoder_blocks.0.attn.rope.freqs"
    with pytest.raises(DisaError, match="rotary frequencies"):
        flowar.configure({**state, key: state[key] * 2})
    with pytest.raises(DisaError, match="has the shape scalar instead of 2 dimensions"):
        flowar.configure({**state, "encoder_blocks.0.attn.proj.weight": torch.ones(())})
    in_two_rows = {**state, key: state[key].reshape(2, -1)}
    assert flowar.configure(in_two_rows) == flowar.configure(state)
    weights = {key: tensor for key, tensor in state.items() if key != "z_proj.bias"}
    with pytest.raises(DisaError, match=r"z_proj\.bias"):
        flowar.build(weights, flowar.configure(weights))


@pytest.mark.parametrize("part", ["flownet.res_blocks", "decoder_blocks.1"])
def test_layers_with_other_heads(part: str) -> None:
    state = golden_state("flowar_s")
    tables = [key for key in state if key.startswith(part) and key.endswith("rope.freqs")]
    assert tables
    other = rotary_frequencies(2 * 4 * state[tables[0]].numel())
    with pytest.raises(DisaError, match=f"rotary tables in {part.split('.')[0]} .*another model"):
        flowar.configure({**state, **dict.fromkeys(tables, other)})


@pytest.mark.parametrize("shape", [(), (2,), (100, 64)])
def test_a_rotated_tensor_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    state = golden_state("flowar_l")
    config = flowar.configure(state)
    for key in ("encoder_blocks.0.attn.qkv.weight", "flownet.res_blocks.0.crossattn.q.weight"):
        with pytest.raises(DisaError, match=f"have other shapes \\({key}"):
            flowar.build({**state, key: torch.zeros(shape)}, config)


def test_the_training_layout_uses_the_averaged_weights(tmp_path: Path) -> None:
    state = golden_state("flowar_s")
    path = tmp_path / "checkpoint-last.pth"
    wrong = {key: tensor + 1 for key, tensor in state.items()}
    args = argparse.Namespace(model="flowar_small", diffloss_d=2, cross=None)
    torch.save({"model": wrong, "model_ema": state, "optimizer": {}, "args": args}, path)
    opened = open_checkpoint(path)
    config = flowar.configure(opened.state, None, opened.args)
    model = flowar.build(opened.state, config)
    assert torch.equal(model.z_proj.bias, state["z_proj.bias"])


def test_scales_are_resized_as_by_interpolation() -> None:
    table, start = flowar.resize_table((1, 2, 4, 8, 16)), 1
    for side, following in ((1, 2), (2, 4), (4, 8), (8, 16)):
        image = torch.randn(1, 1, side, side, generator=torch.manual_seed(side))
        full = F.interpolate(image, (16, 16), mode="bicubic")
        expected = F.interpolate(full, (following, following), mode="area").flatten()
        weights = table[start : start + following**2, : side**2]
        torch.testing.assert_close(weights @ image.flatten(), expected, rtol=0, atol=1e-5)
        start += following**2
    assert start == 341


def test_rotation_of_halves_is_that_of_neighbouring_channels() -> None:
    generator = torch.manual_seed(0)
    heads, d, side = 2, 8, 4
    query, key, x = (torch.randn(n, 16, generator=generator) for n in (16, 16, side * side))
    table = rotary_table(side, d)

    def project(weight: torch.Tensor) -> torch.Tensor:
        return (x @ weight.T).unflatten(-1, (heads, d)).transpose(0, 1)

    cos, sin = table.repeat_interleave(2, dim=-1)

    def neighbours(channels: torch.Tensor) -> torch.Tensor:
        turned = torch.stack([-channels[..., 1::2], channels[..., 0::2]], dim=-1).flatten(-2)
        return channels * cos + turned * sin

    expected = neighbours(project(query)) @ neighbours(project(key)).mT
    ours = [rotate(project(halves(weight, heads)), table) for weight in (query, key)]
    torch.testing.assert_close(ours[0] @ ours[1].mT, expected)
    angle = torch.tensor(2 / side * 16.0)
    row_two = table[:, 2 * side]
    torch.testing.assert_close(row_two[0, : d // 4][:1], angle.cos()[None])
    assert torch.equal(row_two[0, d // 4 :], torch.ones(d // 4))


def test_lower_precision_leaves_the_time_embedding() -> None:
    state = golden_state("flowar_l")
    graphs = {g.name: g for g in flowar.graphs(flowar.build(state, flowar.configure(state)))}
    inputs = graphs["timestep"].example({"steps": 5})
    before = evaluate(graphs["timestep"], inputs)
    for graph in graphs.values():
        set_precision(graph.module, Precision.FP16)
    after = evaluate(graphs["timestep"], inputs)
    assert np.array_equal(before["embedding"], after["embedding"])
    assert not np.array_equal(before["modulation"], after["modulation"])


@pytest.mark.parametrize("name", ["flowar_s", "flowar_l"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_exported_graphs_match_at_every_batch(name: str, batch: int, golden_plan: Plans) -> None:
    plan, state = Plan.open(golden_plan(name)), golden_state(name)
    for graph in flowar.graphs(flowar.build(state, flowar.configure(state))):
        sizes = {**graph.sizes, "batch": batch}
        inputs = graph.example(sizes)
        session = open_session(plan, graph.name, "cpu")
        assert "batch" in {dim for spec in session.inputs for dim in spec.shape} or (
            graph.name == "timestep"
        )
        outputs = session.run(inputs)
        for key, expected in evaluate(graph, inputs).items():
            np.testing.assert_allclose(outputs[key], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["flowar_s", "flowar_l"])
def test_images_of_a_batch_do_not_mix(name: str, golden_plan: Plans) -> None:
    plan, state = Plan.open(golden_plan(name)), golden_state(name)
    graphs = flowar.graphs(flowar.build(state, flowar.configure(state)))
    head = next(graph for graph in graphs if graph.name == "head")
    session = open_session(plan, "head", "cpu")
    inputs = head.example({**head.sizes, "batch": 3})
    together = np.asarray(session.run(inputs)["next_x"])
    for image in range(3):
        one = {
            key: array.take([image], head.inputs[key].index("batch"))
            if "batch" in head.inputs[key]
            else array
            for key, array in inputs.items()
        }
        alone = np.asarray(session.run(one)["next_x"])
        np.testing.assert_allclose(alone[:, 0], together[:, image], rtol=0, atol=1e-5)


def test_half_precision_exports(golden_plan: Plans) -> None:
    """The export itself compares every graph with the fp32 model."""
    full, half = (Plan.open(golden_plan("flowar_l", precision=p)) for p in ("fp32", "fp16"))
    sizes = [sum(m.size for m in plan.manifest.members.values()) for plan in (full, half)]
    assert 0.4 * sizes[0] < sizes[1] < 0.75 * sizes[0]


def test_the_head_carries_only_the_weights_it_uses(golden_plan: Plans) -> None:
    plan = Plan.open(golden_plan("flowar_l"))
    hoisted = ("time_embed", "cond_embed", "ada_lin_attn", ".kv.", "norm2_2")
    used = sum(
        tensor.numel()
        for key, tensor in without_rotary(golden_state("flowar_l")).items()
        if key.startswith("flownet.") and not any(part in key for part in hoisted)
    )
    tables = 2 * 341 * 32
    assert used <= numbers_in(plan, "head") <= used + tables + 100


def numbers_in(plan: Plan, graph: str) -> int:
    """How many floating-point numbers a graph holds."""
    model = onnx.load_from_string(bytes(plan.read(plan.graph(graph).onnx)))
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    return sum(math.prod(tensor.dims) for tensor in floats)
