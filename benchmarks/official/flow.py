"""FlowAR and xAR in plain PyTorch, doing the work that the original implementations do.

The layers are the exporter's, with fused attention. What disa hoists out of the denoising loop
is computed at every step, as in the original code: the embedded condition and timestep, what
follows from them in every block, and the keys and values of FlowAR's cross-attention; guided
halves are doubled rows. Keys and values of finished scales and clusters are kept.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from disa.exporter.families import flowar, xar
from disa.exporter.families.configs.flow import HEAD_DIM
from disa.exporter.families.configs.xar import CLUSTERS
from disa.exporter.layers import flow, flow_head
from disa.exporter.layers.transformer import for_each, guided
from disa.progress import progress_bar
from disa.runtime.families.flow.flowar import FlowAROptions
from disa.runtime.families.flow.options import FlowOptions
from disa.runtime.generation import Request
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.flow import FlowTable, euler_maruyama_table, euler_table
from disa.runtime.sampling.noise import PhiloxNoise, noise_of
from disa.runtime.stats import Stats

from ..records import Record, new_record
from .contenders import ALL_FULL, Lap, class_labels
from .race import compared, finished

Caches = tuple[Tensor, Tensor]
Noises = Sequence[PhiloxNoise]


class FlowARLoop:
    """FlowAR: scale after scale, Euler steps with the flow head.

    Attributes:
        tokens: tokens of each scale.
        first_guided: the first scale with an unconditional half.
        table: makes the table of a number of steps.
    """

    first_guided, table = 0, staticmethod(euler_table)

    def __init__(self, model: flowar.FlowAR) -> None:
        self.config, self.head = model.config, model.flownet
        self.tokens = [side * side for side in model.config.scales]
        self._modulation = flowar.ClassModulation(model)
        self._backbone = flowar.Backbone(model)
        # The bare condition: what the head makes of it is the head's work at every step.
        self._backbone.cond_embed, self._backbone.crossed = nn.Identity(), None  # type: ignore[assignment]
        self._rotary = flowar.scale_rotary(model.config, HEAD_DIM)
        self._places = torch.tensor([0, *self.tokens]).cumsum(0)

    def condition(self, index: int, done: Sequence[Tensor], classes: Tensor, past: Any) -> Any:
        """The condition z [guidance, batch, tokens, width] and the caches after it."""
        batch, channels = classes.shape[1], self.config.vae_embed_dim
        caches = past[1:] if past else empty_caches(self.config, classes)
        previous = done[-1] if done else torch.zeros(1, batch, channels)
        positions = torch.arange(int(self._places[index]), int(self._places[index + 1]))
        return self._backbone(previous, positions, classes, self._modulation(classes), *caches)

    def velocity(
        self, index: int, x: Tensor, state: Any, timestep: Tensor, classes: Tensor
    ) -> Tensor:
        """The head at one step, [guidance, tokens, batch, C]."""
        head, z = self.head, state[0].flatten(0, 1)
        rotary = self._rotary[:, int(self._places[index]) : int(self._places[index + 1])]
        embedding = head.time_embed(timestep.expand(len(z)))[:, None]
        activated = F.silu(head.cond_embed(z) + embedding)
        hidden = head.input_proj(for_each(x.transpose(0, 1), len(classes)))
        for block in head.res_blocks:
            if not head.cross:
                hidden = block(hidden, block.ada_lin(activated), rotary, None)[0]
                continue
            hidden = block.attend_self(hidden, block.ada_lin_attn(F.silu(embedding)), rotary)
            query = block.crossattn.query(block.norm2_1(hidden), rotary)
            kept = block.crossattn.keys_values(block.norm2_2(z), rotary)
            hidden = block.feed_forward(hidden + block.crossattn.attend(query, *kept), activated)
        return flow_head.by_guidance(head.final_layer(hidden, activated), x.shape[1])

    def scale(self, options: FlowOptions, index: int, moment: float) -> float:
        """Guidance of a step at a flow time."""
        assert isinstance(options, FlowAROptions)
        late = moment <= options.guidance_interval
        return options.guidance(index, len(self.tokens)) if late else 1.0


class XARLoop:
    """xAR: cluster after cluster, Euler-Maruyama steps with the whole transformer.

    Attributes: see `FlowARLoop`; a cluster is what a scale is there.
    """

    first_guided, table = 1, staticmethod(euler_maruyama_table)

    def __init__(self, model: xar.XAR) -> None:
        self.config, self.tokens = model.config, [model.config.cluster_tokens] * CLUSTERS
        self._modulation = xar.TimestepModulation(model)
        self._prefill, self._network = xar.Prefill(model), xar.StepNetwork(model)

    def condition(self, index: int, done: Sequence[Tensor], classes: Tensor, past: Any) -> Caches:
        """The caches of the clusters before."""
        caches: Caches = past if index > 1 else empty_caches(self.config, classes)
        if index:
            modulation = self._modulations(torch.zeros(()), classes)
            caches = self._prefill(done[-1], self._positions(index - 1), modulation, *caches)
        return caches

    def velocity(
        self, index: int, x: Tensor, state: Caches, timestep: Tensor, classes: Tensor
    ) -> Tensor:
        """The transformer at one step, [guidance, tokens, batch, C]."""
        modulation = self._modulations(timestep, classes)
        result: Tensor = self._network(x, self._positions(index), modulation, *state)
        return result

    def scale(self, options: FlowOptions, index: int, moment: float) -> float:
        """Guidance of a step."""
        del moment
        return options.guidance(index, len(self.tokens))

    def _modulations(self, timestep: Tensor, classes: Tensor) -> Tensor:
        rows = classes.flatten()
        result: Tensor = self._modulation(timestep.expand(len(rows)), rows)
        return result.unflatten(0, classes.shape)

    def _positions(self, index: int) -> Tensor:
        count = self.config.cluster_tokens
        return torch.arange(index * count, (index + 1) * count)


class OfficialImage:
    """A loop in PyTorch, in fp32 or under autocast; a contender for whole images."""

    full_passes = ALL_FULL

    def __init__(
        self, name: str, loop: FlowARLoop | XARLoop, dtype: torch.dtype | None = None
    ) -> None:
        self.name, self.loop, self._dtype = name, loop, dtype

    def table(self, options: FlowOptions, index: int) -> FlowTable:
        """The denoising steps of an AR iteration."""
        return self.loop.table(options.step_schedule.steps(index, len(self.loop.tokens)))

    def image(self, options: Any, labels: Sequence[int], noises: Noises) -> list[Lap]:
        """Every AR iteration of a batch."""
        loop, done, state = self.loop, list[Tensor](), None
        every = torch.tensor([list(labels), [loop.config.class_num] * len(labels)])
        laps = []
        cast = torch.autocast("cpu", self._dtype) if self._dtype else nullcontext()
        with torch.no_grad(), cast, fused_attention():
            for index, tokens in enumerate(loop.tokens):
                table, shape = self.table(options, index), (tokens, loop.config.vae_embed_dim)
                noise = torch.from_numpy(noise_of(noises, index, 1 + len(table), shape))
                classes = every[: 1 + (options.guided and index >= loop.first_guided)]
                start = time.perf_counter()
                state = loop.condition(index, done, classes, state)
                middle = time.perf_counter()
                x = self._steps(options, index, table, noise, state, classes)
                done.append(x)
                end = time.perf_counter()
                sampled = x.float().flatten(0, 1).numpy()
                laps.append(Lap(middle - start, end - middle, sampled))
        return laps

    def _steps(
        self, options: Any, index: int, table: FlowTable, noise: Tensor, state: Any, classes: Tensor
    ) -> Tensor:
        x, batch = noise[0], noise.shape[2]
        for step, factors in enumerate(torch.from_numpy(table.coefficients)):
            timestep = torch.tensor(float(table.timesteps[step]))
            halves = self.loop.velocity(index, x, state, timestep, classes)
            scale = self.loop.scale(options, index, float(table.times[step]))
            x = factors[0] * x + factors[1] * guided(halves, torch.full((batch,), scale))
            # The last step adds no noise.
            if len(factors) > 2 and step < len(table) - 1:
                x = x + factors[2] * noise[step + 1]
        return x


class PlanImage:
    """A plan on an engine, by the loop that users run; a contender for whole images."""

    full_passes = ALL_FULL

    def __init__(self, name: str, pipe: Pipeline) -> None:
        self.name, self._family = name, pipe.family

    def image(self, options: Any, labels: Sequence[int], noises: Noises) -> list[Lap]:
        """Every AR iteration of a batch."""
        pairs = zip(labels, noises, strict=True)
        requests = [Request(label, options, noise) for label, noise in pairs]
        stats, laps = Stats(), list[Lap]()
        samples = self._family.start(requests, stats)
        while not samples[0].done:
            seen: list[Any] = []
            self._family.step(samples, stats, lambda each: seen.append(np.array(each.sampled)))  # noqa: B023
            laps.append(Lap(stats.seconds.get("backbone", 0.0), stats.seconds["head"], seen[0]))
            stats = Stats()
        return laps


def race_images(
    official: Sequence[OfficialImage],
    plans: Sequence[PlanImage],
    options: FlowOptions,
    batch: int,
    rounds: int,
) -> Record:
    """Time whole images of every contender in turn, as JSON; medians of the rounds count."""
    contenders: list[OfficialImage | PlanImage] = [*official, *plans]
    record, laps = new_record("official_loop"), list[dict[str, Any]]()
    labels, noises = class_labels(batch), [PhiloxNoise(0, i) for i in range(batch)]
    every = range(len(official[0].loop.tokens))
    with progress_bar(rounds + 1, "racing", "image") as advance:
        for turn in range(rounds + 1):
            taken = {each.name: each.image(options, labels, noises) for each in contenders}
            advance(1)
            if turn == 0:
                continue  # A warm-up.
            laps += [compared(i, {name: of[i] for name, of in taken.items()}) for i in every]
    steps = [len(official[0].table(options, index)) for index in every]
    return finished(record, contenders, laps, options, steps, every, batch, rounds)


def empty_caches(config: Any, classes: Tensor) -> Caches:
    """Keys and values of no tokens for both stacks, [2 * depth, guidance, batch, heads, 0, d]."""
    encoder, decoder = (
        torch.zeros(2 * depth, *classes.shape, heads, 0, config.width // heads)
        for depth, heads in (
            (config.encoder_depth, config.encoder_num_heads),
            (config.decoder_depth, config.decoder_num_heads),
        )
    )
    return encoder, decoder


@contextmanager
def fused_attention() -> Iterator[None]:
    """The exporter's layers with PyTorch's own attention, as the original code has it."""

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(query, key.to(query.dtype), value.to(query.dtype))
        return mixed.transpose(1, 2).flatten(2)

    with (
        patch.object(flow, "attention", attention),
        patch.object(flow_head, "attention", attention),
    ):
        yield
