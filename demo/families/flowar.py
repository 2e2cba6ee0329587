"""The demo's FlowAR: maps of 1, 4, 16 and 64 tokens, each finer than the one before."""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from disa.exporter.families.configs.flow import HEAD_DIM
from disa.exporter.families.configs.flowar import FlowARConfig
from disa.exporter.families.flowar import FlowAR, scale_rotary

from ..data.fashion_mnist import CLASS_NAMES
from ..data.latents import Latents
from . import flow

CONFIG = FlowARConfig(
    encoder_embed_dim=128,
    encoder_depth=1,
    encoder_num_heads=4,
    decoder_embed_dim=128,
    decoder_depth=2,
    decoder_num_heads=4,
    vae_embed_dim=4,
    class_num=len(CLASS_NAMES),
    diffloss_d=3,
    diffloss_w=128,
    cross=False,
    grid=8,
    vae_stride=4,
)
SCALES = CONFIG.scales
COUNTS = [side * side for side in SCALES]


def build() -> FlowAR:
    """A new model."""
    model = FlowAR(CONFIG)
    head = model.flownet
    zero = [flow.modulation_of(block) for block in flow.blocks(head.res_blocks)]
    zero += [cast(nn.Linear, head.final_layer.adaLN_modulation[1]), head.final_layer.linear]
    flow.initialise(model, [*flow.stack_modulations(model), *zero])
    return model


def checkpoint(weights: dict[str, Tensor]) -> dict[str, Any]:
    """A file in the layout of the official training checkpoints."""
    return flow.checkpoint(CONFIG, weights)


class Training:
    """The velocity loss of all scales at once, each seeing the coarser ones."""

    def __init__(self, model: FlowAR, latents: Latents) -> None:
        self.model, self.latents = model, latents
        self.scale = torch.arange(len(SCALES)).repeat_interleave(torch.tensor(COUNTS))
        self.earlier = flow.hidden_from(self.scale <= self.scale[:, None])
        self.same = flow.hidden_from(self.scale == self.scale[:, None])
        self.rotary = scale_rotary(CONFIG, CONFIG.width // CONFIG.encoder_num_heads)
        self.head_rotary = scale_rotary(CONFIG, HEAD_DIM)
        # The coarse scales have few tokens, but all later scales depend on them.
        weight = torch.tensor([count**-0.5 for count in COUNTS])[self.scale]
        self.weight = weight / weight.sum()

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """Losses of the images `rows` [batch] of the data."""
        latents = self.latents.sample(rows)
        maps = [F.interpolate(latents, (side, side), mode="area") for side in SCALES]
        x = torch.cat([tokens(latent_map) for latent_map in maps], 1)
        known = torch.cat([tokens(resized(latent_map)) for latent_map in maps[:-1]], 1)
        time, noise = flow.random_times(len(x), len(SCALES)), torch.randn_like(x)
        noisy = flow.on_the_line(x, noise, time[:, self.scale].unsqueeze(-1))
        labels = flow.drop_labels(self.latents.labels[rows], CONFIG.class_num)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = self.velocity(noisy, time, self.condition(known, labels))
        error = flow.velocity_error(velocity.float(), x, noise)
        return {"loss": (error * self.weight).sum(1).mean(), "error": error.mean()}

    def condition(self, known: Tensor, labels: Tensor) -> Tensor:
        """The head's condition for each token, [batch, 85, width].

        Args:
            known: for every scale but the first, the previous scale in its size, [batch, 84, c].
            labels: [batch].
        """
        model = self.model
        start = model.class_emb(labels).unsqueeze(1)
        x = torch.cat([start, model.z_proj(known)], 1) + model.encoder_pos_embed_learned
        x, activated = model.z_proj_ln(x), F.silu(start)
        for block in flow.blocks(model.encoder_blocks):
            modulation = flow.modulation_of(block)(activated)
            x = flow.run_block(block, x, modulation, self.rotary, self.earlier)
        x = model.decoder_embed(model.encoder_norm(x)) + model.decoder_pos_embed_learned
        for block in flow.blocks(model.decoder_blocks):
            modulation = flow.modulation_of(block)(activated)
            x = flow.run_block(block, x, modulation, self.rotary, self.earlier)
        result: Tensor = model.decoder_norm(x) + model.diffusion_pos_embed_learned
        return result

    def velocity(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """The head's velocities [batch, 85, c] of noisy tokens at `time` [batch, scales]."""
        head = self.model.flownet
        embedded = head.time_embed((time * flow.TIMESTEPS).flatten()).unflatten(0, time.shape)
        activated = F.silu(head.cond_embed(condition) + embedded[:, self.scale])
        x = head.input_proj(noisy)
        for block in flow.blocks(head.res_blocks):
            modulation = flow.modulation_of(block)(activated)
            x = flow.run_block(block, x, modulation, self.head_rotary, self.same)
        result: Tensor = head.final_layer(x, activated)
        return result


def tokens(latent_map: Tensor) -> Tensor:
    """A map [batch, c, h, w] as tokens [batch, h * w, c]."""
    return latent_map.flatten(2).transpose(1, 2)


def resized(latent_map: Tensor) -> Tensor:
    """Resize a map to the next scale: bicubic interpolation to the full grid, then averages."""
    side = 2 * latent_map.shape[-1]
    full = F.interpolate(latent_map, (CONFIG.grid, CONFIG.grid), mode="bicubic")
    return F.interpolate(full, (side, side), mode="area")
