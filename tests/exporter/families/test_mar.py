import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.families.configs.mar import MARConfig, configure, official_config, recognise
from disa.exporter.families.mar import MAR, Decoder, build, graphs, manifest
from disa.exporter.graphs.graph import evaluate
from disa.exporter.layers.transformer import Block, QueryBlock

from ...conftest import GOLDEN

State = Mapping[str, Tensor]


def golden(name: str) -> tuple[State, dict[str, Any], dict[str, Any]]:
    opened = open_checkpoint(GOLDEN / name / "checkpoint.pth")
    config = json.loads((GOLDEN / name / "architecture.json").read_text())
    return opened.state, config, opened.args


@pytest.mark.parametrize("name", ["mar", "mar_patch2"])
def test_the_recorded_condition_comes_out_of_the_backbone(name: str) -> None:
    """z of the first iteration, embedded: only the buffer is visible, guidance runs along."""
    state, config, args = golden(name)
    sizes = configure(state, config, args)
    model = build(state, sizes, name)
    recorded = np.load(GOLDEN / name / "linear_cfg.npz")
    labels = recorded["labels"]
    first = recorded["mask_before_000"] & ~recorded["mask_before_001"]
    predicted = np.nonzero(first)[1].reshape(len(labels), -1).T
    rest = np.nonzero(~first)[1].reshape(len(labels), -1).T
    inputs = {
        "tokens": np.zeros((0, len(labels), sizes.channels), np.float32),
        "positions": np.concatenate([predicted, rest]),
        "predicted": predicted,
        "class_index": np.stack([labels, np.full_like(labels, sizes.class_num)]),
    }
    backbone = graphs(model)[0]
    got = evaluate(backbone, inputs)["condition"]
    with torch.no_grad():
        embedded = model.head.cond_embed(torch.from_numpy(recorded["z_000"])).numpy()
    rows = embedded.reshape(2, len(labels), -1, sizes.diffloss_w).swapaxes(1, 2)
    np.testing.assert_allclose(got, rows.reshape(got.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mar_b", "mar_l", "mar_h"])
def test_official_sizes_need_no_configuration(name: str) -> None:
    wanted = official_config(name)
    with torch.device("meta"):
        state = MAR(wanted).state_dict()
    assert recognise(state)
    assert configure(state) == wanted
    assert manifest(wanted)["tokens"] == {
        "count": 256,
        "channels": 16,
        "latent_shape": [16, 16, 16],
        "dimensions": {"visible": [0, 128, 256], "predicted": [1, 256]},
    }


def test_any_sizes_are_read_from_tensors_and_configuration() -> None:
    wanted = MARConfig(
        img_size=48,
        vae_stride=4,
        patch_size=2,
        vae_embed_dim=3,
        class_num=7,
        buffer_size=5,
        encoder_embed_dim=24,
        encoder_depth=1,
        encoder_num_heads=3,
        decoder_embed_dim=40,
        decoder_depth=3,
        decoder_num_heads=5,
        diffloss_d=2,
        diffloss_w=16,
        mlp_ratio=2.0,
    )
    with torch.device("meta"):
        state = MAR(wanted).state_dict()
    rest = {"vae_stride": 4, "vae_embed_dim": 3, "encoder_num_heads": 3, "decoder_num_heads": 5}
    assert configure(state, rest) == wanted
    assert configure(state, None, rest) == wanted
    with pytest.raises(DisaError, match="patch_size"):
        configure(state, {"encoder_num_heads": 3, "decoder_num_heads": 5})
    with pytest.raises(DisaError, match="tensors do not show the attention heads"):
        configure(state, {"vae_stride": 4, "vae_embed_dim": 3})
    with pytest.raises(DisaError, match="do not divide"):
        configure(state, {**rest, "encoder_num_heads": 7})
    with pytest.raises(DisaError, match="tensors have 24"):
        configure(state, {**rest, "encoder_embed_dim": 32})
    for name, value in (
        ("vae_stride", 0),
        ("vae_embed_dim", 0),
        ("vae_embed_dim", "three"),
        ("patch_size", [2]),
        ("encoder_num_heads", 3.0),
        ("img_size", float("inf")),
    ):
        with pytest.raises(DisaError, match=f"{name} must be a positive whole number"):
            configure(state, {**rest, name: value})
    with pytest.raises(DisaError, match="mean 144 tokens"):
        configure(state, {**rest, "img_size": 96})


@pytest.mark.parametrize(("grid", "fits"), [(1, False), (2, False), (3, True)])
def test_images_have_at_least_nine_tokens(grid: int, fits: bool) -> None:
    wanted = replace(official_config("mar_b"), img_size=16 * grid)
    with torch.device("meta"):
        state = MAR(wanted).state_dict()
    if fits:
        assert configure(state) == wanted
        return
    with pytest.raises(DisaError, match=f"images of {grid}x{grid} tokens are too small"):
        configure(state)


def test_unknown_keys_are_errors() -> None:
    state, config, args = golden("mar")
    with pytest.raises(DisaError, match=r"'encoder_heads'.*did you mean encoder_num_heads"):
        configure(state, {**config, "encoder_heads": 8}, args)
    with pytest.raises(DisaError, match=r"'zzz'.*the keys are buffer_size, class_num"):
        configure(state, {**config, "zzz": 8}, args)


@pytest.mark.parametrize(("stride", "channels", "fits"), [(1, 3, True), (1, 2, False)])
def test_pixels_are_grey_rgb_or_rgba(stride: int, channels: int, fits: bool) -> None:
    state, config, args = golden("mar")
    sizes = replace(
        configure(state, config, args), img_size=8, vae_stride=stride, vae_embed_dim=channels
    )
    if fits:
        Decoder(sizes, None)
        return
    with pytest.raises(DisaError, match="pixels of 2 channels"):
        Decoder(sizes, None)


def test_the_configuration_goes_before_the_training_options() -> None:
    state, config, args = golden("mar")
    assert configure(state, config, {**args, "encoder_num_heads": 8}).encoder_num_heads == 4


def test_a_query_block_is_a_block_for_some_tokens() -> None:
    torch.manual_seed(0)
    block, x = Block(32, 4), torch.randn(3, 9, 32)
    with torch.no_grad():
        got = QueryBlock(block)(x, 4, 3)
        torch.testing.assert_close(got, block(x)[:, 4:7], rtol=1e-5, atol=1e-6)


def test_the_order_of_visible_tokens_does_not_matter() -> None:
    state, config, args = golden("mar")
    backbone = graphs(build(state, configure(state, config, args), "mar"))[0]
    inputs = backbone.example({"guidance": 2, "batch": 2, "visible": 6, "predicted": 4})
    shuffled = dict(inputs)
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffled["tokens"] = inputs["tokens"][order]
    shuffled["positions"] = np.concatenate(
        [inputs["positions"][:6][order], inputs["positions"][6:]]
    )
    np.testing.assert_allclose(
        evaluate(backbone, inputs)["condition"],
        evaluate(backbone, shuffled)["condition"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_missing_and_misshapen_tensors(tmp_path: Path) -> None:
    state, config, args = golden("mar")
    sizes = configure(state, config, args)
    lacking = {key: value for key, value in state.items() if key != "mask_token"}
    with pytest.raises(DisaError, match="mask_token"):
        build(lacking, sizes, "some.pth")
    wrong = {**state, "z_proj.bias": torch.zeros(3)}
    with pytest.raises(DisaError, match=r"z_proj\.bias"):
        build(wrong, sizes, "some.pth")


def test_exported_graphs_keep_dimensions_symbolic(golden_plan: Callable[..., Path]) -> None:
    import onnx

    from disa.engines.plan.plan import Plan

    with Plan.open(golden_plan("mar")) as plan:
        for name, graph in plan.manifest.graphs.items():
            model = onnx.load_from_string(bytes(plan.read(graph.onnx)))
            for value in [*model.graph.input, *model.graph.output]:
                dims = value.type.tensor_type.shape.dim
                specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
                got = tuple(dim.dim_param or dim.dim_value for dim in dims)
                assert got == specs[value.name].shape, (name, value.name)


def test_any_missing_tensor_is_named() -> None:
    state, config, args = golden("mar")
    for key in state:
        lacking = {name: tensor for name, tensor in state.items() if name != key}
        with pytest.raises(DisaError):
            build(lacking, configure(lacking, config, args), "some.pth")
