"""The demo's Harmon: MAR with a small Qwen2 between its two halves, which reads captions."""

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from torch import Tensor, nn

from disa.exporter.checkpoints.tokenizer import PRE_TOKENS, SPECIAL_TOKENS
from disa.exporter.families.configs.harmon import HarmonConfig
from disa.exporter.families.harmon_model import AFTER_THE_IMAGE, Harmon
from disa.exporter.layers import qwen2
from disa.exporter.layers.transformer import additive
from disa.runtime.families.conditions.prompt import CONDITIONAL, TEMPLATE, UNCONDITIONAL

from ..data import captions
from ..data.latents import Latents
from . import mar
from .diffusion import DiffusionLoss

TOKENIZER = Path(__file__).parents[1] / "weights" / "fashion_tokenizer.json"
VOCABULARY = 416
CONFIG = HarmonConfig(
    llm=qwen2.Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    mar=replace(mar.CONFIG, encoder_depth=3, decoder_depth=3),
)
CAPTION_DROP = 0.1


def build() -> Harmon:
    """A new model."""
    model = Harmon(CONFIG)
    mar.initialise(model.mar)
    for module in (*model.llm.modules(), *model.proj_in, *model.proj_out):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.language_model.embed_tokens.weight, std=0.5)
    return model


KEPT_BLOCKS = (0, 1, 3)
"""Blocks of each half of MAR that Harmon is initialised with."""


def start_from(model: Harmon, state: Mapping[str, Tensor]) -> None:
    """Load the weights of the demo's trained MAR in place, as the official models do."""
    half = model.mar.state_dict()
    for key, tensor in half.items():
        stack, dot, rest = key.partition("_blocks.")
        if dot and stack in ("encoder", "decoder"):
            index, _, name = rest.partition(".")
            key = f"{stack}_blocks.{KEPT_BLOCKS[int(index)]}.{name}"
        tensor.copy_(state[key])


def checkpoint(weights: dict[str, Tensor]) -> dict[str, Any]:
    """A file in the layout of the official checkpoints, a plain state dict."""
    return dict(weights)


def configuration() -> dict[str, Any]:
    """The sizes that tensors do not show, for `disa-export --config`."""
    half = CONFIG.mar
    geometry = ("img_size", "vae_stride", "patch_size", "vae_embed_dim")
    heads = ("encoder_num_heads", "decoder_num_heads")
    return {
        "llm": {"num_attention_heads": CONFIG.llm.num_attention_heads},
        "mar": {name: getattr(half, name) for name in (*geometry, *heads)},
    }


def train_tokenizer() -> Tokenizer:
    """Train Qwen2's kind of byte-pair encoding on the words of all captions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = ["a", "an", "low", "high", "small", "large", "narrow", "wide"]
    words += ["dark", "grey", "bright", "striped", "patterned", "plain"]
    nouns = [noun for names in captions.NOUNS.values() for noun in names]
    texts = [f"{word} {noun}" for word in words for noun in nouns]
    texts += [TEMPLATE.format(CONDITIONAL.format(text)) for text in texts]
    texts += [TEMPLATE.format(UNCONDITIONAL)]
    for token in SPECIAL_TOKENS:
        texts = [text.replace(token, "\n") for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


class Training:
    """MAR's losses, with a caption before the language model's image tokens."""

    def __init__(self, model: Harmon, latents: Latents) -> None:
        self.model, self.latents = model, latents
        self.diffusion = DiffusionLoss()
        self.tokenizer = Tokenizer.from_file(str(TOKENIZER))
        self.properties = captions.measure(latents.pixels.numpy(), latents.labels.numpy())
        self.rng = random.Random(0)
        self.encode = cache(self.token_ids)

    def token_ids(self, caption: str | None) -> list[int]:
        """The language model's input for a caption, or for none."""
        text = UNCONDITIONAL if caption is None else CONDITIONAL.format(caption)
        ids: list[int] = self.tokenizer.encode(TEMPLATE.format(text)).ids
        return ids

    def prompts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Captions of the images `rows` as ids padded on the right, and their lengths [batch]."""
        found = []
        for row in rows.tolist():
            said = None
            if self.rng.random() >= CAPTION_DROP:
                label = int(self.latents.labels[row])
                said = captions.caption(label, self.properties[row], self.rng)
            found.append(torch.tensor(self.encode(said)))
        lengths = torch.tensor([len(ids) for ids in found])
        return nn.utils.rnn.pad_sequence(found, batch_first=True), lengths

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """Losses of the images `rows` [batch] of the data."""
        half = self.model.mar
        tokens = mar.patchify(self.latents.sample(rows), half.config.patch_size)
        order = torch.rand(tokens.shape[:2]).argsort(1)
        visible = half.config.tokens - mar.masked_count(half.config.tokens, mar.LOWEST_MASK_RATIO)
        ordered = mar.in_order(tokens, order)
        ids, lengths = self.prompts(rows)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = mar.encode(half, half.fake_latent, ordered[:, :visible], order)
            fused = encoded + self.model.proj_out(self.read(encoded, order, ids, lengths))
            condition = mar.decode(half, fused, order)
            return mar.head_loss(half.head, self.diffusion, ordered[:, visible:], condition)

    def read(self, encoded: Tensor, order: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """The language model's output for the image after the prompt, shaped like `encoded`.

        It reads the image line by line and the buffer last. Tokens are ordered prompt, buffer,
        visible; the reading order is in the mask and in the rotary positions.

        Args:
            encoded: buffer and visible tokens, [batch, buffer + visible, width].
            order: generation order, [batch, L].
            ids: prompts [batch, padded].
            lengths: of the prompts without padding, [batch].
        """
        model, buffer = self.model.language_model, self.model.config.mar.buffer_size
        padded, batch = ids.shape[1], len(ids)
        last = (torch.arange(buffer) + AFTER_THE_IMAGE).expand(batch, -1)
        place = torch.cat([last, order[:, : encoded.shape[1] - buffer]], 1)
        # A prompt is read before the image, from left to right; nothing reads its padding.
        start = torch.arange(-padded, 0).expand(batch, -1)
        place = torch.cat([start, place], 1)
        real = torch.cat([torch.arange(padded) < lengths[:, None], place[:, padded:] >= 0], 1)
        sees = (place[:, None, :] <= place[:, :, None]) & real[:, None, :]
        # Padding sees nothing; its place does not matter.
        position = (sees.sum(-1) - 1).clamp(min=0)
        mask = additive(sees)[:, None, None]
        x = torch.cat([model.embed_tokens(ids).float(), self.model.proj_in(encoded)], 1)
        rotation = model.rotation(position)
        for layer in cast(list[qwen2.Layer], list(model.layers)):
            x = layer(x, rotation, mask)[0]
        result: Tensor = model.norm(x[:, padded:])
        return result
