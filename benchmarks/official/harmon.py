"""Harmon in plain PyTorch: MAR's baseline with a language model between its two halves.

As in the original code the keys and values of the prompts are kept, and all else is computed
for doubled rows at every AR iteration: encoder, language model, decoder over all tokens.
"""

import torch
from torch import Tensor

from disa.exporter.families.harmon_model import Grid, Harmon
from disa.exporter.layers.transformer import additive
from disa.runtime.families.conditions.prompt import EncodedPrompt, PromptBatch
from disa.runtime.families.masked.harmon import interpolation

from .mar import OfficialMAR

PROMPT = EncodedPrompt(tuple(range(2, 27)), tuple(range(2, 16)))
"""As long as an ordinary prompt; which tokens it has makes no difference to the time."""


class OfficialHarmon(OfficialMAR):
    """The whole model for images of one size and batches of one prompt.

    Args:
        model: the weights.
        height, width: tokens along the sides of an image.
    """

    def __init__(self, model: Harmon, height: int, width: int) -> None:
        half = model.config.mar
        super().__init__(half)
        self.load_state_dict(model.mar.state_dict())
        self.proj_in, self.proj_out = model.proj_in, model.proj_out
        self.language_model = model.language_model
        sides = [torch.from_numpy(interpolation(half.grid, side)) for side in (height, width)]
        with torch.no_grad():
            encoder, decoder, condition = Grid(model.mar)(*sides)
            for name, table in (("encoder", encoder), ("decoder", decoder)):
                learned = getattr(self, f"{name}_pos_embed_learned")
                places = torch.cat([learned[0, : self.buffer], table])[None]
                setattr(self, f"{name}_pos_embed_learned", torch.nn.Parameter(places))
            self.diffusion_pos_embed_learned = torch.nn.Parameter(condition[None])
            prompts = PromptBatch.of_prompts([PROMPT], guided=True)
            self.keys, self.values = self.language_model.prompt(torch.from_numpy(prompts.input_ids))
        self.lengths = torch.from_numpy(prompts.length)

    def embeddings(self, labels: Tensor, guided: bool) -> Tensor:
        return self.fake_latent.repeat(len(labels) * (1 + guided), 1)

    def between(self, x: Tensor, guided: bool) -> Tensor:
        """The language model reads the visible tokens line by line, and the buffer last."""
        count, batch = x.shape[1], len(x) // (1 + guided)
        half = torch.arange(1 + guided).repeat_interleave(batch)
        length, padded = self.lengths[half, None], int(self.keys.shape[3])
        places = torch.arange(count)
        prompt = additive(torch.arange(padded) < length)[:, None].expand(-1, count, -1)
        earlier = additive(places[None] <= places[:, None]).expand(len(x), -1, -1)
        hidden = self.language_model(
            self.proj_in(x.roll(-self.buffer, 1)),
            length + places,
            torch.cat([prompt, earlier], dim=2),
            self.keys[:, half],
            self.values[:, half],
        )
        return x + self.proj_out(hidden).roll(self.buffer, 1)
