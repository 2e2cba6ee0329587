import json
from pathlib import Path

import numpy as np
import pytest

from disa.runtime.generation import Request
from disa.runtime.pipeline import Pipeline
from disa.runtime.replay.masked import replay_mar
from disa.runtime.replay.reference import RecordedRun
from disa.runtime.sampling.head import Iteration
from disa.runtime.sampling.noise import PhiloxNoise
from disa.runtime.stats import Stats

STEPS = 4
LABELS = [3, 1]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_run_of_one_iteration(pixel_pipeline: Pipeline, scale: float, tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    record_one_iteration(pixel_pipeline, scale, path)
    only, latents = replay_mar(pixel_pipeline, RecordedRun(path))
    assert (only.what, latents.what) == ("iteration 0", "latents")
    assert max(only.relative, latents.relative) < 1e-6


def record_one_iteration(pipe: Pipeline, scale: float, path: Path) -> None:
    """Write a run with a single AR iteration as the official code would record it."""
    options = pipe.options(num_iterations=1, steps=f"{STEPS}:{STEPS}", guidance_scale=scale)
    noises = [PhiloxNoise(5, image) for image in range(len(LABELS))]
    requests = [Request(label, options, noise) for label, noise in zip(LABELS, noises, strict=True)]
    seen: list[Iteration] = []
    outputs = pipe.generate(requests, Stats(), watch=seen.append)
    draws, halves = len(seen[0].table) + 1, 2 if options.guided else 1
    # Rows are (image, ascending position); the head's are (place in the order, image).
    ascending = [noise.order(16).argsort() for noise in noises]
    sampled = np.asarray(seen[0].sampled).reshape(16, len(LABELS), -1)
    rows = np.concatenate([sampled[ascending[image], image] for image in range(len(LABELS))])
    gaussian = [
        noise.gaussian(0, draws, (16, rows.shape[1]))[:, places]
        for noise, places in zip(noises, ascending, strict=True)
    ]
    noise = np.concatenate(gaussian, axis=1)
    meta = {
        "upper": STEPS,
        "lower": STEPS,
        "strategy": "linear",
        "sampler": "DiSA",
        "batch": len(LABELS),
        "num_iter": 1,
        "cfg": scale,
        "cfg_schedule": "linear",
        "temperature": 1.0,
        "steps": [{"step": 0, "rows": halves * len(rows), "first_draw": 0, "draws": draws}],
    }
    np.savez(
        path,
        meta=json.dumps(meta),
        labels=np.array(LABELS),
        mask_before_000=np.ones((len(LABELS), 16), bool),
        sampled_000=np.tile(rows, (halves, 1)),
        latents=np.stack([output.latents for output in outputs]),
        **{f"draw_{index:04d}": noise[index] for index in range(draws)},
    )
