import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from disa.engines.open import open_session
from disa.engines.plan.plan import Plan
from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.families import flowar, mar, xar
from disa.exporter.families.configs.xar import SIZES, defaults, official_config
from disa.exporter.graphs.graph import Graph, evaluate
from disa.exporter.layers.flow import halves

from ...conftest import GOLDEN
from .test_flowar import numbers_in

Plans = Callable[..., Path]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return open_checkpoint(GOLDEN / "xar" / "checkpoint.pth").state


@pytest.fixture(scope="module")
def graphs(state: dict[str, torch.Tensor]) -> dict[str, Graph]:
    return {graph.name: graph for graph in xar.graphs(xar.build(state, xar.configure(state)))}


def test_sizes_are_read_from_the_tensors(state: dict[str, torch.Tensor]) -> None:
    assert xar.recognise(state)
    assert not mar.recognise(state)
    assert not flowar.recognise(state)
    config = xar.configure(state)
    expected = json.loads((GOLDEN / "xar" / "architecture.json").read_text())
    assert {key: getattr(config, key) for key in expected} == expected
    with pytest.raises(DisaError, match="has encoder_depth 3"):
        xar.configure(state, {"encoder_depth": 3})


@pytest.mark.parametrize("name", SIZES)
def test_official_sizes_need_no_flags(name: str) -> None:
    config = official_config(name)
    with torch.device("meta"):
        state = xar.XAR(config).state_dict()
    assert xar.configure(state) == config
    assert defaults(config)["steps"] == "50:15"


def test_official_guidance() -> None:
    assert [defaults(official_config(name))["guidance_scale"] for name in SIZES] == [2.7, 2.3, 2.2]


def test_rotary_table_is_the_stored_one(state: dict[str, torch.Tensor]) -> None:
    """The checkpoint holds its table, for interleaved channels, in generation order."""
    table = xar.cluster_rotary(grid=16, head_dim=16)
    stored = [state[f"encoder_blocks.0.attn.rope.freqs_{name}"] for name in ("cos", "sin")]
    for ours, theirs in zip(table, stored, strict=True):
        torch.testing.assert_close(torch.cat([ours, ours], dim=-1), halves(theirs.T, 1).T)


def test_tokens_of_quadrants_find_their_places(graphs: dict[str, Graph]) -> None:
    tokens = np.arange(256, dtype=np.float32)[:, None, None] * np.ones((1, 2, 16), np.float32)
    latents = evaluate(graphs["decoder"], {"tokens": tokens})["latents"]
    assert latents.shape == (2, 16, 16, 16)
    rows = latents[1, 5]
    assert rows[0, 0] == 0
    assert rows[0, 7] == 7
    assert rows[1, 0] == 8
    assert rows[0, 8] == 64
    assert rows[8, 0] == 128
    assert rows[15, 15] == 255


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_exported_graphs_match_at_every_batch(
    batch: int, golden_plan: Plans, graphs: dict[str, Graph]
) -> None:
    plan = Plan.open(golden_plan("xar"))
    for graph in graphs.values():
        inputs = graph.example({**graph.sizes, "batch": batch})
        session = open_session(plan, graph.name, "cpu")
        dims = {dim for spec in session.inputs for dim in spec.shape}
        assert {"batch", "rows"} & dims
        outputs = session.run(inputs)
        for key, expected in evaluate(graph, inputs).items():
            np.testing.assert_allclose(outputs[key], expected, rtol=0, atol=2e-5)


def test_noise_and_guidance_are_those_of_each_image(
    golden_plan: Plans, graphs: dict[str, Graph]
) -> None:
    head = graphs["head"]
    session = open_session(Plan.open(golden_plan("xar")), "head", "cpu")
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
    full, half = (Plan.open(golden_plan("xar", precision=p)) for p in ("fp32", "fp16"))
    sizes = [sum(m.size for m in plan.manifest.members.values()) for plan in (full, half)]
    assert 0.4 * sizes[0] < sizes[1] < 0.75 * sizes[0]


def test_the_loop_does_not_carry_the_modulation_weights(
    golden_plan: Plans, state: dict[str, torch.Tensor]
) -> None:
    plan = Plan.open(golden_plan("xar"))
    hoisted = ("ada_lin", "class_emb", "time_embed", "rope", "mask")
    used = sum(
        tensor.numel() for key, tensor in state.items() if not any(part in key for part in hoisted)
    )
    tables = 2 * 2 * 256 * 8
    assert used <= numbers_in(plan, "head") <= used + tables + 100


def test_prefill_and_head_share_their_weights_in_the_plan(golden_plan: Plans) -> None:
    plan = Plan.open(golden_plan("xar"))
    members = plan.manifest.members
    head, prefill = (set(plan.graph(name).data) for name in ("head", "prefill"))
    assert head & prefill
    # The head's own are its last block's second half and what is too small to share.
    assert sum(members[name].size for name in head - prefill) < 0.25 * sum(
        members[name].size for name in prefill
    )
