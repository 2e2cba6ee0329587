"""The two stacks of blocks in FlowAR and xAR."""

import torch
from torch import nn

from ..families.configs.flow import StackConfig
from .flow import Block, RMSNorm
from .transformer import Linear


class Stacks(nn.Module):
    """The modules of both families, with the keys of their official checkpoints.

    Args:
        positions: tokens with a separate position embedding.
    """

    def __init__(self, config: StackConfig, positions: int) -> None:
        super().__init__()
        width = config.width
        self.class_emb = nn.Embedding(config.class_num + 1, width)
        self.z_proj = Linear(config.vae_embed_dim, width)
        self.z_proj_ln = RMSNorm(width, affine=True)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, width))
        self.encoder_blocks = nn.ModuleList(
            Block(width, config.encoder_num_heads) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = RMSNorm(width, affine=True)
        self.decoder_embed = Linear(width, width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.decoder_num_heads) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = RMSNorm(width, affine=True)
