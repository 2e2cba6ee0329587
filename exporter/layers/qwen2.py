"""Qwen2.5, the language model of Harmon: RMSNorm, rotary embedding, grouped heads, SwiGLU.

Only the parts for image generation: a prompt pass that caches keys and values, and a pass of
embeddings after such a cache. There is no text output, hence no `lm_head`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...errors import DisaError
from ..checkpoints.state_dict import count_blocks, shape_of
from ..families.configs.sizes import check_keys, check_sizes
from ..graphs.precision import NarrowEmbedding
from .transformer import additive

SIZES = {
    "qwen2.5_0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
    "qwen2.5_1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
    },
}
OFFICIAL = {"vocab_size": 151936, "num_key_value_heads": 2}
"""Sizes that the published models share."""
WHERE = "the checkpoint's language model"
WITHOUT_EFFECT = (
    "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id",
    "initializer_range", "layer_types", "max_position_embeddings", "max_window_layers",
    "model_type", "pad_token_id", "sliding_window", "tie_word_embeddings", "torch_dtype",
    "transformers_version", "use_cache", "use_mrope",
)  # fmt: skip
"""Keys of a published `config.json` that have no effect here."""
TABLE_SIZE = 512
"""Rows of the two rotary tables. Positions are below its square: the largest image and prompt have
67,648 tokens together."""


@dataclass(frozen=True)
class Config:
    """Sizes of a Qwen2 model, under the names of its published `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0

    def __post_init__(self) -> None:
        check_sizes(type(self), vars(self), "the language model's")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise DisaError(
                f"{self.num_attention_heads} attention heads do not divide the language model's "
                f"hidden_size {self.hidden_size} into even parts: fix num_attention_heads"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise DisaError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}: fix the configuration"
            )

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def group(self) -> int:
        """Query heads that share one key and value head."""
        return self.num_attention_heads // self.num_key_value_heads


def configure(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> Config:
    """The sizes of a checkpoint.

    Args:
        state: the tensors under `llm.model.`.
        given: sizes that tensors do not show, from the model's `config.json`; missing ones
            are those of the published model of these sizes.

    Raises:
        DisaError: a size is missing, `given` contradicts the tensors, or it describes a variant
            of Qwen2 that is not supported.
    """
    names = {field.name for field in fields(Config)}
    refused = ("hidden_act", "rope_scaling", "use_sliding_window")
    check_keys(given, (*names, *refused, *WITHOUT_EFFECT), "the configuration's llm")
    _refuse_variants(given)
    from_tensors = sizes_in_tensors(state)
    for key, value in from_tensors.items():
        if given.get(key, value) != value:
            raise DisaError(
                f"the configuration has {key} {given[key]} for the language model, but the "
                f"checkpoint's tensors have {value}"
            )
    shapes = {key: value for key, value in from_tensors.items() if key != "vocab_size"}.items()
    official = next((size for size in SIZES.values() if size.items() >= shapes), {})
    heads = given.get("num_attention_heads", official.get("num_attention_heads"))
    if heads is None:
        raise DisaError(
            f"a language model of width {from_tensors['hidden_size']} is not an official "
            "one, and tensors do not show the attention heads: set llm.num_attention_heads in a "
            "JSON file with --config"
        )
    sizes = {key: value for key, value in given.items() if key in names} | from_tensors
    sizes["num_attention_heads"] = heads
    check_sizes(Config, sizes, "the language model's")
    key_width, _ = shape_of(state, "layers.0.self_attn.k_proj.weight", 2, WHERE)
    sizes.setdefault("num_key_value_heads", key_width * heads // from_tensors["hidden_size"])
    config = Config(**sizes)
    if config.num_key_value_heads * config.head_dim != key_width:
        raise DisaError(
            f"num_attention_heads {heads} and num_key_value_heads {config.num_key_value_heads} "
            f"mean keys of width {config.num_key_value_heads * config.head_dim}, but the "
            f"checkpoint's are {key_width} wide: set the correct values with --config"
        )
    return config


def official_config(name: str) -> Config:
    """The sizes of a published model, `qwen2.5_0.5b` or `qwen2.5_1.5b`."""
    return Config(**SIZES[name], **OFFICIAL)


def sizes_in_tensors(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The options that follow from the shapes of the tensors."""
    intermediate, hidden = shape_of(state, "layers.0.mlp.gate_proj.weight", 2, WHERE)
    return {
        "vocab_size": shape_of(state, "embed_tokens.weight", 2, WHERE)[0],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": count_blocks(state, "layers", WHERE),
    }


def _refuse_variants(given: Mapping[str, Any]) -> None:
    if given.get("hidden_act", "silu") != "silu":
        raise DisaError(
            f"the language model's hidden_act is {given['hidden_act']!r}: only silu is supported"
        )
    for option in ("use_sliding_window", "rope_scaling"):
        if given.get(option):
            raise DisaError(f"a language model with {option} is not supported")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


@dataclass(frozen=True)
class Rotation:
    """Cosine and sine of every position's rotary angles, [rows, 1, tokens, head_dim / 2]."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Rotate `x` [rows, heads, tokens, head_dim] (rotate-half layout), in fp32."""
        first, second = x.float().chunk(2, dim=-1)
        cos, sin = self.cos * scale, self.sin * scale
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Attention with fewer key and value heads than query heads."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.group, self.scale = config.group, config.head_dim**-0.5
        width, key_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, key_width)
        self.v_proj = nn.Linear(width, key_width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def key_value(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Rotated keys and values of `x` [rows, tokens, width].

        Both are [rows, key_heads, tokens, head_dim].
        """
        x = x.to(self.k_proj.weight.dtype)
        key, value = (
            by_head(self.k_proj(x), self.key_heads),
            by_head(self.v_proj(x), self.key_heads),
        )
        return rotation(key).to(x.dtype), value

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Attention of `x` [rows, tokens, width] in fp32; the result has the same shape.

        The queries that share a key head are consecutive, so that keys and values are never
        repeated. They are scaled in fp32 while they are rotated: Qwen2's large key biases would
        overflow fp16 scores that are scaled afterwards.

        Args:
            mask: added to the scores, [rows or 1, 1, 1, tokens, keys].
            key, value: [rows, key_heads, keys, head_dim].
        """
        query = rotation(by_head(self.q_proj(x.to(key.dtype)), self.heads), self.scale)
        query = query.to(key.dtype).unflatten(1, (self.key_heads, self.group))
        scores = query.flatten(2, 3) @ key.transpose(-2, -1)
        weights = (scores.float().unflatten(2, (self.group, -1)) + mask).softmax(-1)
        mixed = weights.to(value.dtype).flatten(2, 3) @ value
        mixed = mixed.unflatten(2, (self.group, -1)).flatten(1, 2).transpose(1, 2).flatten(2)
        result: Tensor = self.o_proj(mixed).float()
        return result


def by_head(x: Tensor, heads: int) -> Tensor:
    """[rows, tokens, width] -> [rows, heads, tokens, head_dim]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., width] in fp32; the result has the same shape."""
        x = x.to(self.gate_proj.weight.dtype)
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)).float()
        return result


class Layer(nn.Module):
    """Pre-norm decoder layer; the residual stream is fp32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def key_value(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """The rotated keys and the values of `x`, for later tokens."""
        result: tuple[Tensor, Tensor] = self.self_attn.key_value(self.input_layernorm(x), rotation)
        return result

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        mask: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x` [rows, tokens, width] after the cached `past` -> x, its keys and its values."""
        normed = self.input_layernorm(x)
        own_key, own_value = self.self_attn.key_value(normed, rotation)
        key, value = own_key, own_value
        if past is not None:
            key = torch.cat([past[0].to(key.dtype), key], dim=2)
            value = torch.cat([past[1].to(value.dtype), value], dim=2)
        x = x + self.self_attn(normed, rotation, mask, key, value)
        return x + self.mlp(self.post_attention_layernorm(x)), own_key, own_value


class Qwen2(nn.Module):
    """The transformer without its output layer, with the keys of an official checkpoint."""

    coarse_table: Tensor
    fine_table: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = NarrowEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        for name, distance in (("coarse", TABLE_SIZE), ("fine", 1)):
            # Constants, not weights: on the CPU even if the model is on the meta device.
            self.register_buffer(f"{name}_table", _rotary_table(distance, config), persistent=False)

    def rotation(self, positions: Tensor) -> Rotation:
        """Rotary tables for `positions` [rows, tokens], whole numbers below `TABLE_SIZE` ** 2.

        cos(a + b) and sin(a + b) of two parts of the position, whose sines are constants: an engine
        that computes in bf16 has no angle to round.
        """
        cos, sin = self.coarse_table[:, positions // TABLE_SIZE]
        cos_fine, sin_fine = self.fine_table[:, positions % TABLE_SIZE]
        both = cos * cos_fine - sin * sin_fine, sin * cos_fine + cos * sin_fine
        return Rotation(*(each[:, None] for each in both))

    def prompt(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of every layer, [layers, prompts, key_heads, length, head_dim], fp32.

        `input_ids` [prompts, length] are padded on the right: attention is causal, so no
        real token attends to padding, and the padded part of the cache must be masked by
        its readers. For the last layer only keys and values are computed.
        """
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        rotation = self.rotation(place[None])
        mask = additive(place[None, :] <= place[:, None])[None, None, None]
        x = self.embed_tokens(input_ids).float()
        keys, values = [], []
        for layer in self.layers[:-1]:
            x, key, value = layer(x, rotation, mask)
            keys.append(key)
            values.append(value)
        key, value = self.layers[-1].key_value(x, rotation)
        return torch.stack([*keys, key]).float(), torch.stack([*values, value]).float()

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Process embeddings after cached prompts; the result is after the final norm.

        Args:
            x: [rows, tokens, width] in fp32; the result has the same shape.
            positions: whole numbers, [rows, tokens].
            mask: [rows, tokens, length + tokens], added to the scores.
            keys, values: [layers, rows, key_heads, length, head_dim].
        """
        rotation, mask = self.rotation(positions), mask[:, None, None]
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, mask, (keys[index], values[index]))[0]
        result: Tensor = self.norm(x)
        return result


def _rotary_table(distance: int, config: Config) -> Tensor:
    """Cosines and sines of the rotary angles of every `distance`-th position.

    Returns:
        [2, TABLE_SIZE, head_dim / 2] in fp32, computed in fp64.
    """
    place = distance * torch.arange(TABLE_SIZE, dtype=torch.float64, device="cpu")
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device="cpu")
    angle = place[:, None] * config.rope_theta ** (-exponent / config.head_dim)
    return torch.stack([angle.cos(), angle.sin()]).float()
