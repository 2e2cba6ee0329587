"""The demo's xAR: the four quadrants of the latents in turn, each denoised by the transformer."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from disa.exporter.families.configs.xar import CLUSTERS, QUADRANTS, XARConfig
from disa.exporter.families.xar import XAR, cluster_rotary

from ..data.fashion_mnist import CLASS_NAMES
from ..data.latents import Latents
from . import flow

GRID = 8
CONFIG = XARConfig(
    encoder_embed_dim=128,
    encoder_depth=2,
    encoder_num_heads=4,
    decoder_embed_dim=128,
    decoder_depth=3,
    decoder_num_heads=4,
    vae_embed_dim=4,
    class_num=len(CLASS_NAMES),
    grid=GRID,
    vae_stride=4,
)
TOKENS = CONFIG.cluster_tokens


def build() -> XAR:
    """A new model."""
    model = XAR(CONFIG)
    flow.initialise(model, [*flow.stack_modulations(model), model.pred])
    return model


def checkpoint(weights: dict[str, Tensor]) -> dict[str, Any]:
    """A file in the layout of the official training checkpoints."""
    return flow.checkpoint(CONFIG, weights)


def clusters(latents: Tensor) -> Tensor:
    """Latents [batch, c, GRID, GRID] to tokens, quadrant by quadrant, [batch, tokens, c]."""
    side = GRID // QUADRANTS
    parts = latents.unflatten(3, (QUADRANTS, side)).unflatten(2, (QUADRANTS, side))
    return parts.permute(0, 2, 4, 3, 5, 1).flatten(1, 4)


class Training:
    """The velocity loss of all clusters at once.

    Tokens are ordered [clean clusters, noisy clusters]: a clean token attends to clean clusters up
    to its own, a noisy one to the clean clusters before its own and to its own cluster, as in
    sampling. The last cluster is never context, so it has no clean copy.
    """

    def __init__(self, model: XAR, latents: Latents) -> None:
        self.model, self.latents = model, latents
        place = torch.cat([torch.arange(CLUSTERS - 1), torch.arange(CLUSTERS)])
        place = place.repeat_interleave(TOKENS)
        self.clean = (CLUSTERS - 1) * TOKENS
        noisy = torch.arange(len(place)) >= self.clean
        context = ~noisy & (place < place[:, None] + (~noisy).long()[:, None])
        self.mask = flow.hidden_from(context | (noisy & noisy[:, None] & (place == place[:, None])))
        table = cluster_rotary(GRID, CONFIG.width // CONFIG.encoder_num_heads)
        self.rotary = self.both(table.transpose(0, 1)).transpose(0, 1)

    def both(self, tokens: Tensor) -> Tensor:
        """Repeat tokens [tokens, ...] of the image for the clean and the noisy clusters."""
        return torch.cat([tokens[: self.clean], tokens])

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """Losses of the images `rows` [batch] of the data."""
        x = clusters(self.latents.sample(rows))
        time, noise = flow.random_times(len(x), CLUSTERS), torch.randn_like(x)
        spread = time.repeat_interleave(TOKENS, 1).unsqueeze(-1)
        noisy = flow.on_the_line(x, noise, spread)
        labels = flow.drop_labels(self.latents.labels[rows], CONFIG.class_num)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = self.velocity(torch.cat([x[:, : self.clean], noisy], 1), time, labels)
        error = flow.velocity_error(velocity.float(), x, noise).mean()
        return {"loss": error}

    def velocity(self, tokens: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Velocities of the noisy tokens, [batch, CLUSTERS * TOKENS, c].

        Args:
            tokens: clean, then noisy ones, [batch, tokens, c].
            time: of each noisy cluster, [batch, CLUSTERS].
            labels: [batch].
        """
        model = self.model
        positions = self.both(model.encoder_pos_embed_learned[0])
        x = model.z_proj_ln(model.z_proj(tokens) + positions)
        times = torch.cat([torch.zeros(len(time), 1), time * flow.TIMESTEPS], 1).flatten()
        embedded = model.time_embed(times).unflatten(0, (len(time), -1))
        condition = F.silu(model.class_emb(labels).unsqueeze(1) + embedded)
        x = self.run(model.encoder_blocks, x, condition)
        x = model.decoder_embed(model.encoder_norm(x))
        x = self.run(
            model.decoder_blocks, x + self.both(model.decoder_pos_embed_learned[0]), condition
        )
        result: Tensor = model.pred(model.decoder_norm(x[:, self.clean :]))
        return result

    def run(self, stack: nn.ModuleList, x: Tensor, condition: Tensor) -> Tensor:
        """Run a stack of blocks; `condition` is that of time 0, then of each noisy cluster."""
        for block in flow.blocks(stack):
            modulation = flow.modulation_of(block)(condition)
            clean = modulation[:, :1].expand(-1, CLUSTERS - 1, -1)
            modulation = torch.cat([clean, modulation[:, 1:]], 1)
            x = flow.run_block(block, x, modulation, self.rotary, self.mask)
        return x
