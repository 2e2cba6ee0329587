"""Converts diffusers' tensor names of a KL autoencoder to the official ones.

The layers are the same. diffusers numbers the levels from the coarsest, and its older files have
other names for the attention layers.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import DisaError

_LEVEL = re.compile(r"decoder\.up_blocks\.(\d{1,2})\.(.+)")
_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_MIDDLE = {
    "decoder.mid_block.resnets.0.": "decoder.mid.block_1.",
    "decoder.mid_block.resnets.1.": "decoder.mid.block_2.",
    "decoder.mid_block.attentions.0.": "decoder.mid.attn_1.",
    "decoder.conv_norm_out.": "decoder.norm_out.",
}
KIND = "AutoencoderKL"
# Options of AutoencoderKL that the official decoder does not have.
_ONLY = {
    "act_fn": "silu",
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "latents_mean": None,
    "latents_std": None,
}


def is_diffusers(state: Mapping[str, Any]) -> bool:
    """Whether the tensors have diffusers' names."""
    return any(key.startswith("decoder.up_blocks.") for key in state)


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's tensors under official names; the others unchanged."""
    found = [int(match[1]) for key in state if (match := _LEVEL.fullmatch(key))]
    coarsest = max(found, default=0)
    renamed = {}
    for key, tensor in state.items():
        name = _official(key, coarsest)
        # A linear layer over the channels is a 1x1 convolution.
        if ".attn" in name and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[name] = tensor
    return renamed


def _official(key: str, coarsest: int) -> str:
    if match := _LEVEL.fullmatch(key):
        rest = match[2].replace("resnets.", "block.", 1)
        rest = rest.replace("upsamplers.0.conv", "upsample.conv", 1)
        rest = rest.replace("conv_shortcut", "nin_shortcut", 1)
        key = f"decoder.up.{coarsest - int(match[1])}.{rest.replace('attentions.', 'attn.', 1)}"
    for before, after in _MIDDLE.items():
        if key.startswith(before):
            key = after + key.removeprefix(before).replace("conv_shortcut", "nin_shortcut", 1)
    if ".attn" in key:
        before, layer, kind = _split_attention(key)
        key = f"{before}.{_ATTENTION.get(layer, layer)}.{kind}"
    return key


def _split_attention(key: str) -> tuple[str, str, str]:
    """Split a key into, for example, `decoder.mid.attn_1`, `to_out.0` and `weight`."""
    rest, _, kind = key.rpartition(".")
    match = re.fullmatch(r"(.*\.attn(?:_1|\.\d{1,2}))\.(.+)", rest)
    return (match[1], match[2], kind) if match else (rest, "", kind)


def check_configuration(config: Mapping[str, Any], where: Path) -> None:
    """Check that diffusers' `config.json` describes a supported decoder.

    Raises:
        DisaError: it does not.
    """
    kind = config.get("_class_name", KIND)
    if kind != KIND:
        raise DisaError(f"{where}: it is the configuration of {str(kind)[:60]}, not {KIND}")
    for option, value in _ONLY.items():
        if config.get(option, value) != value:
            raise DisaError(
                f"{where}: the VAE has {option} {str(config[option])[:60]}, but only {value} is "
                "supported"
            )
