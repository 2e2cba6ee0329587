from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from torch import Tensor

from disa.engines.plan.traits import GraphTraits, Role
from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.graphs.graph import Arrays, Graph, export_graph
from disa.exporter.graphs.precision import Precision, set_precision
from disa.exporter.vae.decoder import KLConfig, KLDecoder, build, configure
from disa.exporter.vae.files import open_vae
from disa.exporter.vae.latents import LATENT_SCALE

FOLDER = Path(__file__).parents[2] / "golden" / "vae"
FILE = FOLDER / "kl16_tiny.ckpt"
GOLDEN_SIZES = KLConfig(
    latent_channels=16, inner_channels=16, channels=(32, 32, 64, 64), res_blocks=3, out_channels=3
)
SMALL = KLConfig(
    latent_channels=4, inner_channels=6, channels=(32, 64), res_blocks=2, out_channels=1
)


def error_of(image: Tensor, expected: npt.NDArray[np.float32]) -> float:
    """Relative L2 error."""
    return float(np.linalg.norm(image.numpy() - expected) / np.linalg.norm(expected))


def decode(vae: KLDecoder, latents: npt.NDArray[np.float32]) -> Tensor:
    with torch.no_grad():
        image: Tensor = vae(torch.from_numpy(latents))
    return image


def random_vae(config: KLConfig) -> KLDecoder:
    torch.manual_seed(0)
    return KLDecoder(config).eval()


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [(Precision.FP32, 1e-5), (Precision.FP16, 3e-3), (Precision.BF16, 2e-2)],
)
def test_image_is_that_of_the_original(precision: Precision, tolerance: float) -> None:
    reference = np.load(FOLDER / "reference.npz")
    vae = set_precision(open_vae(FILE).build(16, 8), precision)
    image = decode(vae, reference["latents"])
    assert image.dtype == torch.float32
    assert error_of(image, reference["image"]) < tolerance
    assert float(reference["scale"]) == pytest.approx(LATENT_SCALE)


def test_norms_stay_in_fp32() -> None:
    vae = set_precision(open_vae(FILE).build(16, 8), Precision.FP16)
    dtypes = {
        kind: {module.weight.dtype for module in vae.modules() if isinstance(module, kind)}
        for kind in (torch.nn.Conv2d, torch.nn.GroupNorm)
    }
    assert dtypes == {torch.nn.Conv2d: {torch.float16}, torch.nn.GroupNorm: {torch.float32}}


def test_attention_survives_scores_beyond_fp16() -> None:
    """Such scores are infinite in fp16, and their softmax is NaN."""
    vae = random_vae(SMALL)
    attention = vae.decoder.mid.attn_1
    with torch.no_grad():
        for layer in (attention.q, attention.k):
            layer.weight.mul_(300)
        x = torch.randn(1, 64, 4, 4)
        exact = attention(x)
        for layer in (attention.q, attention.k, attention.v, attention.proj_out):
            layer.half()
        assert torch.linalg.norm(attention(x) - exact) < 0.1 * torch.linalg.norm(exact)


def test_sizes_are_read_from_the_tensors() -> None:
    assert configure(open_checkpoint(FILE).state, FILE) == GOLDEN_SIZES
    assert GOLDEN_SIZES.stride == 8


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(GOLDEN_SIZES, channels=(128, 128, 256, 256, 512)),
        replace(SMALL, res_blocks=1),
    ],
    ids=["small", "kl16", "one_block"],
)
def test_any_size_is_recognised(config: KLConfig) -> None:
    with torch.device("meta"):
        state = KLDecoder(config).state_dict()
    assert configure(state, "vae.ckpt") == config


def test_each_image_is_that_of_batch_1() -> None:
    vae = random_vae(SMALL)
    latents = np.random.default_rng(0).standard_normal((3, 4, 5, 3), np.float32)
    together = decode(vae, latents)
    assert together.shape == (3, 1, 10, 6)
    for index in range(3):
        alone = decode(vae, latents[index : index + 1]).numpy()
        assert error_of(together[index : index + 1], alone) < 1e-5


def test_other_file_layouts_load_alike(tmp_path: Path) -> None:
    vae = random_vae(SMALL)
    latents = np.random.default_rng(0).standard_normal((1, 4, 3, 3), np.float32)
    expected = decode(vae, latents).numpy()
    plain, wrapped = tmp_path / "plain.pth", tmp_path / "wrapped.pth"
    torch.save(vae.state_dict(), plain)
    torch.save({f"module.{k}": v.double() for k, v in vae.state_dict().items()}, wrapped)
    for path in (plain, wrapped):
        again = open_vae(path).build(4, 2)
        assert error_of(decode(again, latents), expected) == 0


def test_precision_and_gradients_after_building() -> None:
    state = random_vae(SMALL).state_dict()
    vae = build(state, SMALL)
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert {parameter.device.type for parameter in vae.parameters()} == {"cpu"}


def test_exported_graph_agrees_at_every_batch_and_size(tmp_path: Path) -> None:
    vae = random_vae(replace(SMALL, res_blocks=1))

    def example(sizes: dict[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        shape = (sizes["batch"], 4, sizes["height"], sizes["width"])
        return {"latents": rng.standard_normal(shape, np.float32)}

    graph = Graph(
        name="vae",
        module=vae,
        inputs={"latents": ("batch", 4, "height", "width")},
        outputs={"image": ("batch", 1, "image_height", "image_width")},
        traits=GraphTraits(Role.DECODE),
        example=example,  # type: ignore[arg-type]
        sizes={"batch": 2, "height": 5, "width": 7},
    )
    exported = export_graph(graph, tmp_path)
    session = onnxruntime.InferenceSession(exported.onnx, providers=["CPUExecutionProvider"])
    for batch, height, width in [(1, 4, 4), (2, 5, 7), (3, 6, 2)]:
        inputs = example({"batch": batch, "height": height, "width": width})
        expected = decode(vae, inputs["latents"])
        image = session.run(None, inputs)[0]
        assert image.shape == (batch, 1, 2 * height, 2 * width)
        assert error_of(expected, image) < 1e-5


@pytest.mark.parametrize(
    ("channels", "stride", "sentence"),
    [
        (4, 8, "has 16 latent channels .*model has 4 latent.*vae_embed_dim 16, vae_stride 8"),
        (16, 16, "a stride of 8 pixels.*needs a stride of 16"),
    ],
)
def test_a_vae_of_another_model(channels: int, stride: int, sentence: str) -> None:
    with pytest.raises(DisaError, match=sentence):
        open_vae(FILE).build(channels, stride)


def test_files_that_are_no_vae(tmp_path: Path) -> None:
    for path, sentence in [
        (FOLDER.parent / "mar" / "checkpoint.pth", "it is a token model"),
        (saved(tmp_path / "o.pth", {"fc.weight": torch.ones(1)}), "but fc.weight"),
    ]:
        with pytest.raises(DisaError, match=f"{path}: .*{sentence}"):
            open_vae(path).build(16, 8)


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The state of a small VAE with some tensors replaced, or left out where None."""
    state = random_vae(SMALL).state_dict() | {
        name.replace("__", "."): tensor for name, tensor in tensors.items() if tensor is not None
    }
    gone = {name.replace("__", ".") for name, tensor in tensors.items() if tensor is None}
    return {name: tensor for name, tensor in state.items() if name not in gone}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (
            changed(decoder__mid__attn_1__q__weight=None),
            "1 of the .* missing .*attn_1.q.weight",
        ),
        (changed(decoder__norm_out__bias=torch.ones(3)), "norm_out.bias is 3, not 32"),
        (changed(decoder__norm_out__bias=torch.full((32,), torch.nan)), "NaN or infinite"),
        (changed(decoder__norm_out__bias=torch.ones(32).char()), "norm_out.bias is int8"),
        (changed(decoder__conv_out__weight=torch.ones(3)), "the shape 3 instead of 4 dimensions"),
        (changed(decoder__conv_out__weight=None), "conv_out.weight is missing"),
        (changed(decoder__up__5__block__0__x=torch.ones(1)), "decoder.up.2 is missing"),
        (changed(decoder__up__1__attn__0__q__weight=torch.ones(1)), "attn.0.norm.weight"),
        (
            {k: v for k, v in changed().items() if not k.startswith("decoder.up")},
            "has no levels",
        ),
        (
            KLDecoder(replace(SMALL, channels=(32, 32))).state_dict()
            | {"decoder.up.0.block.0.conv1.weight": torch.ones(40, 32, 3, 3)},
            "40 channels of the VAE",
        ),
    ],
)
def test_incomplete_or_odd_vaes(tmp_path: Path, state: dict[str, Tensor], sentence: str) -> None:
    path = saved(tmp_path / "vae.ckpt", state)
    with pytest.raises(DisaError, match=sentence) as caught:
        open_vae(path).build(4, 2)
    assert "\n" not in str(caught.value)
