"""Writes pixels.pth: a tiny random MAR on 8x8 grey pixels, in the official layout."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import torch

from disa.exporter.families.configs.mar import MARConfig
from disa.exporter.families.mar import MAR

CONFIG = MARConfig(
    img_size=8,
    vae_stride=1,
    patch_size=2,
    vae_embed_dim=1,
    class_num=10,
    buffer_size=2,
    encoder_embed_dim=32,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=32,
    decoder_depth=2,
    decoder_num_heads=2,
    diffloss_d=1,
    diffloss_w=32,
)
NAMES = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


def main() -> None:
    torch.manual_seed(0)
    model = MAR(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    args = Namespace(**asdict(CONFIG), class_names=NAMES)
    state = model.state_dict()
    torch.save(
        {"model": state, "model_ema": state, "args": args}, Path(__file__).parent / "pixels.pth"
    )


if __name__ == "__main__":
    main()
