import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from disa.engines.plan.plan import Plan
from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.families import harmon
from disa.exporter.families.configs import harmon as harmon_config
from disa.exporter.families.configs import mar as mar_config
from disa.exporter.families.harmon_model import Backbone, Grid, Harmon
from disa.exporter.graphs.graph import Graph, evaluate
from disa.exporter.graphs.precision import Precision, set_precision
from disa.exporter.layers import qwen2
from disa.runtime.families.masked.harmon import interpolation

from ...conftest import GOLDEN, ExportGolden

FOLDER = GOLDEN / "harmon"
CONFIG: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
STATE = open_checkpoint(FOLDER / "checkpoint.pth").state
OFFICIAL = {
    "harmon_0.5b": (qwen2.Config(151936, 896, 4864, 24, 14, 2), mar_config.SIZES["mar_b"]),
    "harmon_1.5b": (qwen2.Config(151936, 1536, 8960, 28, 12, 2), mar_config.SIZES["mar_h"]),
}


@pytest.fixture(scope="module")
def model() -> Harmon:
    return harmon.build(STATE, harmon.configure(STATE, CONFIG), "golden")


def relative(got: Tensor, want: np.ndarray[Any, Any]) -> float:
    assert tuple(got.shape) == want.shape
    return float(np.linalg.norm(got.numpy() - want) / np.linalg.norm(want))


class Replay:
    """One recorded iteration: inputs of the backbone, and its intermediate results."""

    def __init__(self, name: str, index: int) -> None:
        self.arrays = np.load(FOLDER / f"reference_{name}.npz")
        meta = json.loads(str(self.arrays["meta"]))
        self.index, self.images = index, meta["images"]
        self.height, self.width = meta["image_shape"]
        self.guidance = meta["rows"] // self.images
        steps = meta["steps"]
        self.visible = sum(step["predicted"] for step in steps[:index])
        self.count = steps[index]["predicted"]
        # Recorded orders end with what is generated first.
        self.positions = torch.from_numpy(self.arrays["orders"][: self.images, ::-1].T.copy())

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self.arrays[f"{name}_{self.index:03d}"]

    def in_generation_order(self, name: str, start: int, count: int, buffer: int) -> Any:
        """A recorded array [rows, tokens, width] whose image tokens stand in raster order."""
        rows = torch.from_numpy(self[name].reshape(self.images * self.guidance, -1, 64))
        rank = self.positions[start : start + count].argsort(0).argsort(0).T
        rank = rank.repeat(self.guidance, 1)[..., None].expand(-1, -1, 64)
        image = rows[:, buffer : buffer + count].gather(1, rank)
        return torch.cat([rows[:, :buffer], image], dim=1).numpy()

    def inputs(self, model: Harmon) -> tuple[Tensor, ...]:
        tokens = np.zeros((self.images, self.positions.shape[0], 16), np.float32)
        if self.index:
            tokens = self.arrays[f"tokens_{self.index - 1:03d}"][: self.images]
        place = self.positions[..., None].expand(-1, -1, 16)
        ordered = torch.from_numpy(tokens).transpose(0, 1).gather(0, place)
        cache = model.language_model.prompt(torch.from_numpy(self.arrays["input_ids"]))
        rows = torch.from_numpy(interpolation(16, self.height))
        columns = torch.from_numpy(interpolation(16, self.width))
        return (
            ordered[: self.visible],
            self.positions,
            self.positions[self.visible : self.visible + self.count],
            torch.arange(self.guidance * self.images).reshape(self.guidance, -1),
            torch.from_numpy(self.arrays["attention_mask"].sum(1)),
            *cache,
            *Grid(model.mar)(rows, columns),
        )


REPLAYS = [("a", 0), ("a", 3), ("a", 5), ("b", 0), ("b", 2), ("b", 4)]


@pytest.mark.parametrize(("name", "index"), REPLAYS)
@torch.no_grad()
def test_every_stage_is_that_of_the_original(model: Harmon, name: str, index: int) -> None:
    replay, backbone, seen = Replay(name, index), Backbone(model).eval(), {}

    def watch(stage: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _module, _inputs, result: seen.update({stage: result}))

    watch("encoder", backbone.encoder_norm)
    watch("llm_in", backbone.proj_in)
    watch("llm_out", backbone.language_model)
    condition = backbone(*replay.inputs(model))
    buffer = backbone.buffer_size
    expected = replay.in_generation_order("encoder", 0, replay.visible, buffer)
    assert relative(seen["encoder"], expected[: replay.images]) < 1e-5
    for stage in ("llm_in", "llm_out"):
        # Recorded with the buffer behind the image.
        recorded = replay[stage]
        replay.arrays = {**replay.arrays, f"{stage}_{index:03d}": np.roll(recorded, buffer, axis=1)}
        expected = replay.in_generation_order(stage, 0, replay.visible, buffer)
        assert relative(seen[stage], expected[: len(seen[stage])]) < 1e-5
    z = torch.from_numpy(replay.in_generation_order("z", replay.visible, replay.count, 0))
    z = z.unflatten(0, (replay.guidance, replay.images)).transpose(1, 2).flatten(1, 2)
    assert relative(condition, model.mar.head.cond_embed(z).numpy()) < 1e-5


@pytest.mark.parametrize("name", ["a", "b"])
@torch.no_grad()
def test_the_prompt_cache_is_that_of_the_original(model: Harmon, name: str) -> None:
    arrays = np.load(FOLDER / f"reference_{name}.npz")
    keys, values = model.language_model.prompt(torch.from_numpy(arrays["input_ids"]))
    assert len(keys) == len(values) == 2
    for layer in range(2):
        assert relative(keys[layer], arrays[f"prompt_key_{layer}"]) < 1e-6
        assert relative(values[layer], arrays[f"prompt_value_{layer}"]) < 1e-6


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 8), (32, 32), (5, 23), (1, 1)])
@torch.no_grad()
def test_grids_are_interpolated_bilinearly(model: Harmon, height: int, width: int) -> None:
    rows, columns = interpolation(16, height), interpolation(16, width)
    tables = Grid(model.mar)(torch.from_numpy(rows), torch.from_numpy(columns))
    stored = (
        model.mar.encoder_pos_embed_learned[:, 8:],
        model.mar.decoder_pos_embed_learned[:, 8:],
        model.mar.diffusion_pos_embed_learned,
    )
    for table, embedding in zip(tables, stored, strict=True):
        square = embedding.unflatten(1, (16, 16)).permute(0, 3, 1, 2)
        wanted = nn.functional.interpolate(square, size=(height, width), mode="bilinear")
        assert relative(table, wanted[0].flatten(1).T.numpy()) < 1e-6
        if (height, width) == (16, 16):
            assert torch.equal(table, embedding[0])


def graph_of(model: Harmon, name: str) -> Graph:
    return next(graph for graph in harmon.graphs(model) if graph.name == name)


@torch.no_grad()
def test_both_guidance_halves_get_what_each_alone_would(model: Harmon) -> None:
    graph = graph_of(model, "backbone")
    inputs = graph.example(graph.sizes)
    both = evaluate(graph, inputs)["condition"]
    for half in range(2):
        alone = evaluate(graph, {**inputs, "prompt_index": inputs["prompt_index"][half : half + 1]})
        np.testing.assert_allclose(alone["condition"][0], both[half], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_encoder_runs_once_for_both_halves(model: Harmon) -> None:
    graph, seen = graph_of(model, "backbone"), []
    block = graph.module.get_submodule("encoder_blocks.0")
    block.register_forward_hook(lambda *call: seen.append(call[2].shape))
    evaluate(graph, graph.example(graph.sizes))
    assert [tuple(shape) for shape in seen] == [(3, 8 + 7, 64)]


@torch.no_grad()
def test_fp16_stays_near_fp32() -> None:
    fp32, fp16 = (harmon.build(STATE, harmon.configure(STATE, CONFIG), "x") for _ in range(2))
    for name in ("prompt", "backbone"):
        full, half = graph_of(fp32, name), graph_of(fp16, name)
        set_precision(half.module, Precision.FP16)
        inputs = full.example(full.sizes)
        for got, want in zip(
            evaluate(half, inputs).values(), evaluate(full, inputs).values(), strict=True
        ):
            assert got.dtype == np.float32
            assert 0 < relative(torch.from_numpy(got), want) < 1e-2


def test_the_table_of_token_embeddings_is_halved_too() -> None:
    changed = harmon.build(STATE, harmon.configure(STATE, CONFIG), "x")
    for precision in (Precision.FP16, Precision.BF16):
        set_precision(changed, precision)
        tables = [m for m in changed.modules() if isinstance(m, nn.Embedding)]
        narrow = [m for m in tables if m.weight.dtype == precision.dtype]
        assert narrow == [changed.language_model.embed_tokens]


@torch.no_grad()
def test_large_key_biases_do_not_overflow_fp16(model: Harmon) -> None:
    """Qwen2's keys have large biases; these scores exceed 65504 before they are scaled."""
    changed = harmon.build(
        {
            k: v * 0 + 100 if "k_proj.bias" in k or "q_proj.bias" in k else v
            for k, v in STATE.items()
        },
        model.config,
        "x",
    )
    graph = graph_of(changed, "prompt")
    set_precision(graph.module, Precision.FP16)
    assert all(np.isfinite(x).all() for x in evaluate(graph, graph.example(graph.sizes)).values())


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_sizes_need_no_flags(name: str) -> None:
    llm, size = OFFICIAL[name]
    half = mar_config.MARConfig(
        256, 16, 1, 16, 1000, 64, size.width, size.depth, size.heads,
        size.width, size.depth, size.heads, size.diffloss_d, size.diffloss_w,
    )  # fmt: skip
    with torch.device("meta"):
        state = Harmon(harmon.Config(llm, half)).state_dict()
    assert harmon.recognise(state)
    assert not mar_config.recognise(state)
    config = harmon.configure(state)
    assert config == harmon.Config(llm, half) == harmon_config.official_config(name)
    manifest = harmon.manifest(config)
    assert manifest["model"]["size"] == name
    assert manifest["image"] == {"height": 512, "width": 512}
    assert manifest["tokens"]["count"] == 1024
    assert manifest["tokens"]["latent_shape"] == [16, 32, 32]


def test_golden_sizes_come_from_the_configuration() -> None:
    config = harmon.configure(STATE, CONFIG)
    assert (config.llm.num_attention_heads, config.llm.num_key_value_heads) == (4, 2)
    assert config.mar == mar_config.MARConfig(**CONFIG["mar"])
    assert harmon_config.size_name(config) == "harmon"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"llm": {}}, "llm.num_attention_heads"),
        ({"llm": {**CONFIG["llm"], "hidden_size": 32}}, "hidden_size 32"),
        ({"llm": {**CONFIG["llm"], "num_attention_heads": 3}}, "3 attention heads"),
        ({"llm": {**CONFIG["llm"], "num_key_value_heads": 4}}, "keys of width 64"),
        ({"llm": {**CONFIG["llm"], "num_key_value_heads": 3}}, "does not divide"),
        ({"llm": {**CONFIG["llm"], "rope_theta": 0}}, "rope_theta"),
        ({"llm": {**CONFIG["llm"], "hidden_act": "gelu"}}, "only silu"),
        ({"llm": {**CONFIG["llm"], "use_sliding_window": True}}, "use_sliding_window"),
        ({"llm": {**CONFIG["llm"], "rope_scaling": {"factor": 4}}}, "rope_scaling"),
        ({"llm": []}, "llm must be an object"),
        ({"mar": {**CONFIG["mar"], "encoder_depth": 3}}, "encoder_depth 3"),
        ({"mar": {}}, "encoder_num_heads"),
        ({"llm": {**CONFIG["llm"], "num_attention_heads": "four"}}, "positive whole number"),
        ({"llm": {**CONFIG["llm"], "num_key_value_heads": 2.0}}, "positive whole number"),
        ({"llm": {**CONFIG["llm"], "rope_theta": float("inf")}}, "positive number, not inf"),
        ({"vae_scale": 0}, "latent_scale"),
        ({"vae_scale": float("inf")}, "latent_scale"),
        ({"vae_scale": "big"}, "latent_scale"),
    ],
)
def test_configurations_that_do_not_fit(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DisaError, match=told):
        harmon.configure(STATE, {**CONFIG, **change})


def test_the_output_layer_and_a_vae_are_not_needed(model: Harmon) -> None:
    bare = {key: value for key, value in STATE.items() if key != "llm.lm_head.weight"}
    extra = {**bare, "vae.decoder.conv_in.weight": torch.full((1,), float("nan"))}
    for state in (bare, extra):
        harmon.build(state, harmon.configure(state, CONFIG), "x")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("proj_out.2.bias", "proj_out.2.bias"),
        ("llm.model.layers.0.mlp.gate_proj.weight", "gate_proj"),
        ("llm.model.layers.0.self_attn.k_proj.weight", "k_proj"),
    ],
)
def test_a_checkpoint_with_a_tensor_too_few(key: str, told: str) -> None:
    state = {name: value for name, value in STATE.items() if name != key}
    with pytest.raises(DisaError, match=told):
        harmon.build(state, harmon.configure(state, CONFIG), "x")


def test_a_checkpoint_with_a_layer_too_few() -> None:
    state = {name: value for name, value in STATE.items() if ".layers.0." not in name}
    with pytest.raises(DisaError, match="missing"):
        harmon.configure(state, CONFIG)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"lm": {}}, "'lm'.*did you mean llm"),
        ({"mar": {**CONFIG["mar"], "encoder_heads": 8}}, "did you mean encoder_num_heads"),
        ({"llm": {**CONFIG["llm"], "attention_heads": 4}}, "did you mean num_attention_heads"),
        ({"llm": {**CONFIG["llm"], "vocab_size": 300}}, "tensors have 200"),
        ({"vae_scale": 0.5, "latent_scale": 0.4}, "latent_scale twice"),
    ],
)
def test_unknown_and_contradicting_keys(change: dict[str, Any], hint: str) -> None:
    with pytest.raises(DisaError, match=hint):
        harmon.configure(STATE, {**CONFIG, **change})


def test_a_plan_keeps_the_language_model_once(golden_plan: ExportGolden) -> None:
    plan = Plan.open(golden_plan("harmon"))
    members = plan.manifest.members
    first, second = plan.graph("prompt"), plan.graph("backbone")
    assert set(first.data) < set(second.data)
    # The last layer's queries and MLP are the backbone's alone.
    assert sum(members[name].size for name in second.data) > members[first.data[0]].size
    layers = sum(v.nbytes for k, v in STATE.items() if k.startswith("llm.model.layers.0."))
    own = sum(v.nbytes for k, v in STATE.items() if k.startswith(("mar.", "proj_")))
    assert sum(members[name].size for name in second.data[1:]) < own + layers


def test_rotary_tables_are_sines_of_the_angles(model: Harmon) -> None:
    language = model.language_model
    place = np.array([[0, 1, 511, 512, 1100, 67_647, qwen2.TABLE_SIZE**2 - 1]])
    rotation = language.rotation(torch.from_numpy(place))
    width = 2 * rotation.cos.shape[-1]
    angle = place[0][:, None] * 1e6 ** (-np.arange(0, width, 2) / width)
    np.testing.assert_allclose(rotation.cos[0, 0], np.cos(angle), atol=2e-7)
    np.testing.assert_allclose(rotation.sin[0, 0], np.sin(angle), atol=2e-7)


@pytest.mark.parametrize("graph", ["backbone", "refresh", "reuse"])
def test_no_angle_is_computed_in_a_graph(golden_plan: ExportGolden, graph: str) -> None:
    """In bf16 an angle would be wrong by half a turn and more."""
    with Plan.open(golden_plan("harmon", cached_backbone=True)) as plan:
        loaded = onnx.load_from_string(bytes(plan.read(plan.graph(graph).onnx)))
    assert not {"Sin", "Cos"} & {node.op_type for node in loaded.graph.node}


def test_dimensions_of_a_plan_are_symbolic(golden_plan: ExportGolden) -> None:
    plan = Plan.open(golden_plan("harmon"))
    inputs = {spec.name: spec.shape for spec in plan.graph("backbone").inputs}
    assert inputs["tokens"] == ("visible", "batch", 16)
    assert inputs["prompt_key"] == (2, "prompts", 2, "prompt_length", 16)
    assert inputs["encoder_position"] == ("length", 64)


def test_no_leftovers_beside_a_plan(golden_plan: ExportGolden) -> None:
    path = Path(golden_plan("harmon"))
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".disa")] == []
