"""The trained models of the demo, drawn through plans as a user draws them."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from demo import classifier, evaluate, observe
from demo.data import captions
from disa.calibration.quantization.quantize import QuantizeOptions, quantize
from disa.commands.calibrate import main as calibrate
from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.export import export
from disa.runtime.pipeline import Pipeline

Plans = Callable[[str], Path]
LABELS = np.arange(20) % 10
EIGHT_BIT_IMAGES = 4


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    """`plans("xar")` is the fp32 plan of that family's trained model."""
    folder = tmp_path_factory.mktemp("trained")

    @cache
    def make(family: str) -> Path:
        weights, vae = observe.WEIGHTS / f"fashion_{family}.pth", observe.WEIGHTS
        path = folder / f"{family}.plan"
        given = observe.EXPORTS[family]
        export(weights, path, vae=vae / "fashion_vae.ckpt", check=False, **given)
        return path

    return make


def drawn(plan: Path, **options: object) -> tuple[float, float]:
    """Share of the images that show the class asked for, and the head rows of an image."""
    pipe = Pipeline.from_plan(plan, "cpu")
    result = pipe(**evaluate.conditions(pipe, LABELS), seed=1, batch_size=len(LABELS), **options)
    _, classes = classifier.classify(classifier.load(), result.images[..., 0])
    return float((classes == LABELS).mean()), result.stats.head_rows / len(LABELS)


@pytest.mark.parametrize("family", list(observe.EXPORTS))
def test_clothes_are_recognised(family: str, plans: Plans) -> None:
    accuracy, rows = drawn(plans(family))
    assert accuracy >= 0.7
    adaptive, fewer = drawn(plans(family), strategy="adaptive", tolerance=0.1)
    assert fewer < rows
    assert adaptive >= 0.7


def test_a_prompt_says_how_dark_a_boot_is(plans: Plans) -> None:
    pipe = Pipeline.from_plan(plans("harmon"), "cpu")
    prompts = ["a dark ankle boot"] * 8 + ["a bright ankle boot"] * 8
    images = pipe(prompt=prompts, seed=1).images[..., 0]
    boots = np.full(16, captions.CLASS_NAMES.index("ankle boot"))
    tones = [found.tone for found in captions.measure(images, boots)]
    assert "bright" not in tones[:8]
    assert "dark" not in tones[8:]
    assert tones[8:].count("bright") >= 5


def test_later_tokens_are_easier_to_predict_and_vary_less(plans: Plans, tmp_path: Path) -> None:
    output = tmp_path / "fitted.json"
    options = ["--num", "10", "--reference-steps", "12", "--num-iterations", "8", "--engine", "cpu"]
    assert not calibrate.main(
        [str(plans("mar")), *options, "-o", str(output)], standalone_mode=False
    )
    content = json.loads(output.read_text())
    for name in ("predictability", "variance"):
        first, *_, last = content["signals"][name]["mean"]
        assert last < first, name


def test_int8_is_accepted_where_it_is_near_and_refused_where_it_is_not(
    plans: Plans, tmp_path: Path
) -> None:
    good, damaged = tmp_path / "int8.plan", tmp_path / "damaged.plan"
    done = quantize(plans("mar"), good, QuantizeOptions(images=EIGHT_BIT_IMAGES, threads=2))
    assert done.tokens is not None
    assert done.tokens.distance < QuantizeOptions.token_tolerance
    state = dict(open_checkpoint(observe.WEIGHTS / "fashion_mar.pth").state)
    for key, tensor in state.items():
        if key.endswith("adaLN_modulation.1.weight"):
            # One channel so large that the scale of eight bits has no room for the others.
            state[key] = tensor.float()
            state[key][:, 0] *= 200
    torch.save(state, tmp_path / "damaged.pth")
    config = {"vae_embed_dim": 4, "vae_stride": 4, "patch_size": 2, "img_size": 32}
    config |= {"encoder_num_heads": 4, "decoder_num_heads": 4}
    source = tmp_path / "source.plan"
    export(tmp_path / "damaged.pth", source, config=config, check=False)
    options = QuantizeOptions(images=EIGHT_BIT_IMAGES, threads=2, tolerance=100.0)
    with pytest.raises(DisaError, match=r"standard deviations|spread"):
        quantize(source, damaged, options)
    assert not damaged.exists()
