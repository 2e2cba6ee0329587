"""Plans of real families: each image is the one that it would be alone."""

import base64
import concurrent.futures
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from disa.commands.run import main as disa_run
from disa.exporter.export import export
from disa.runtime.generation import Request
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.noise import PhiloxNoise
from disa.server.metrics import Metrics
from disa.server.run import DrainingServer
from disa.server.scheduling.model import load_plan, plan_name
from disa.server.scheduling.policy import JoinAtOnce
from disa.server.scheduling.scheduler import Scheduler
from disa.server.scheduling.ticket import Event, Finished, Ticket
from disa.server.scheduling.waiting import WaitingQueue
from disa.server.scheduling.worker import Worker
from disa.server.service import Service
from disa.server.settings import ServerSettings

from ..conftest import GOLDEN
from ..tiny_tokenizer import write_vocabulary
from .conftest import PATIENCE, RunningServer, serving, until

TOLERANCE = 1e-4
"""Of an image's largest value: matrix kernels sum in another order for other batch sizes."""
MIXED: dict[str, list[dict[str, Any]]] = {
    "mar": [
        {},
        {"steps": "6:3", "guidance_scale": 2.0},
        {"guidance_scale": 1.0},
        {"num_iterations": 3, "strategy": "cosine"},
        {"sampler": "ddim", "steps": "9:2", "tolerance": 0.05},
    ],
    "flowar_s": [{}, {"steps": "5:3"}, {"guidance_scale": 1.0}, {"strategy": "constant"}],
    "xar": [{}, {"steps": "5:3"}, {"guidance_scale": 1.0}, {"strategy": "constant"}],
    "harmon": [{}, {"steps": "6:3"}, {"guidance_scale": 1.0}, {"size": "64x32"}],
}
SMALL = {
    "mar": {"num_iterations": 4, "steps": "4:2"},
    "flowar_s": {"steps": "4:2"},
    "xar": {"steps": "4:2"},
    "harmon": {"num_iterations": 4, "steps": "4:2", "size": "64"},
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_images_that_join_late_are_those_of_the_pipeline(
    name: str, golden_plan: Any, text_plan: Path
) -> None:
    plan = text_plan if name == "harmon" else golden_plan(name)
    check_company(Pipeline.from_plan(plan, "cpu"), [{**SMALL[name], **o} for o in MIXED[name]])


def test_mixed_images_of_a_cached_backbone(cached_backbone_plan: Path) -> None:
    """With and without cached passes, and with different full passes, in one batch."""
    pipe = Pipeline.from_plan(cached_backbone_plan, "cpu")
    common = {"num_iterations": 7, "steps": "4:2"}
    each: list[dict[str, Any]] = [
        {"refresh": "3:2"},
        {},
        {"refresh": "0,1,5"},
        {"refresh": "3:2", "guidance_scale": 1.0},
        {"refresh": "2:0", "num_iterations": 5},
    ]
    shared = check_company(pipe, [{**common, **options} for options in each])
    assert {"backbone", "refresh", "reuse"} <= {name for name, count in shared.items() if count > 1}


def check_company(pipe: Pipeline, each: list[dict[str, Any]]) -> dict[str, int]:
    """Generate images with these options that join one after the other, and each alone.

    Returns:
        The most images that each graph had in one call.
    """
    family = pipe.family
    conditions: list[Any] = [0, 1, 2] if family.classes is not None else ["a dog", "a red cat"]
    queue, latents = WaitingQueue(100), {}
    scheduler = Scheduler(family, JoinAtOnce(), queue, max_images=8)
    wanted = [
        (options, condition, seed) for seed, options in enumerate(each) for condition in conditions
    ]
    shared: dict[str, int] = {}
    for name in pipe.plan.manifest.graphs:
        watch_batch(name, pipe.sessions[name], shared)

    def notify(number: int, event: Event) -> None:
        if isinstance(event, Finished):
            latents[number] = event.output.latents

    for number, (overrides, condition, seed) in enumerate(wanted):
        [checked] = family.conditions([condition])
        request = Request(checked, family.options(overrides), PhiloxNoise(seed, number))
        queue.put([Ticket(request, partial(notify, number))])
        if number % 2:
            scheduler.tick()
    while scheduler.tick():
        pass
    most = dict(shared)
    for number, (overrides, condition, seed) in enumerate(wanted):
        what = {"prompt" if family.classes is None else "class_labels": [condition]}
        alone = pipe(**what, **overrides, seed=seed, first_image=number).latents[0]
        error = np.abs(latents[number] - alone).max() / np.abs(alone).max()
        assert error < TOLERANCE, (number, overrides)
    return most


def watch_batch(name: str, session: Any, most: dict[str, int]) -> None:
    """Keep the largest batch of a session's calls in `most`."""
    batched = [(i.name, i.shape.index("batch")) for i in session.inputs if "batch" in i.shape]
    if not batched:
        return
    (tensor, axis), run = batched[0], session.run

    def watched(inputs: Any) -> Any:
        most[name] = max(most.get(name, 0), inputs[tensor].shape[axis])
        return run(inputs)

    session.run = watched


@contextmanager
def served_plan(*plans: Path, max_images: int = 8) -> Iterator[RunningServer]:
    """A server on real plans."""
    metrics = Metrics()
    workers = [
        Worker(
            plan_name(plan),
            partial(load_plan, plan, "cpu", 1),
            JoinAtOnce(),
            max_images=max_images,
            warm_up_seconds=0,
            observer=metrics.observer(plan_name(plan)),
        )
        for plan in plans
    ]
    service = Service(workers, ServerSettings(port=0), metrics)
    metrics.watch(service.workers)
    with serving(service, {}) as running:
        yield running


def post(url: str, **body: Any) -> list[dict[str, Any]]:
    answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=6 * PATIENCE)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def names(running: RunningServer) -> list[str]:
    return list(running.service.workers)


def pixels(image: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["b64_json"])))).astype(int)


def test_images_are_those_of_disa_run_even_if_the_plan_is_deleted(
    pixel_plan: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "pixels.plan"
    plan.write_bytes(pixel_plan.read_bytes())
    options = ["--iterations", "4", "--steps", "6:2", "--seed", "5", "--engine", "cpu"]
    arguments = [str(plan), "--class", "bag", "--num", "4", *options, "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(disa_run, arguments)
    assert done.exit_code == 0, done.output
    with served_plan(plan) as running, concurrent.futures.ThreadPoolExecutor(4) as pool:
        plan.unlink()
        others = [
            pool.submit(post, running.url, prompt="coat", n=2, seed=seed, steps="9:3")
            for seed in range(3)
        ]
        made = post(running.url, prompt="bag", n=4, seed=5, num_iterations=4, steps="6:2")
        for index, image in enumerate(made):
            expected = np.asarray(Image.open(tmp_path / "out" / f"{index:06d}.png")).astype(int)
            assert np.abs(pixels(image) - expected).max() <= 1
            assert image["steps"] == [6, 4, 3, 2]
        [last] = post(
            running.url, prompt="bag", seed=5, first_image=3, num_iterations=4, steps="6:2"
        )
        assert np.abs(pixels(last) - pixels(made[3])).max() <= 1
        assert all(len(other.result()) == 2 for other in others)


def test_a_plan_that_is_overwritten_in_place_gives_no_images(
    pixel_plan: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "pixels.plan"
    plan.write_bytes(pixel_plan.read_bytes())
    with served_plan(plan) as running:
        request = {"prompt": "bag", "num_iterations": 2, "steps": "2"}
        assert post(running.url, **request)
        with plan.open("r+b") as file:
            file.write(file.read(4))
        answer = httpx.post(f"{running.url}/v1/images/generations", json=request)
        assert answer.status_code == 500
        message = answer.json()["error"]["message"]
        assert "pixels.plan was overwritten while it was in use" in message
        assert str(tmp_path) not in message
        until(lambda: running.server.should_exit)
        assert isinstance(running.server, DrainingServer)
        failure = running.server.failure or ""
        assert "pixels.plan was overwritten" in failure, "the server ends with it"


@pytest.fixture(scope="session")
def drawing_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden model of Harmon with a tokenizer, a decoder to pixels, and small images."""
    folder = tmp_path_factory.mktemp("drawing")
    write_vocabulary(folder / "tokenizer")
    plan = folder / "text.plan"
    config = json.loads((GOLDEN / "harmon" / "config.json").read_text())
    config["mar"] |= {"img_size": 128, "vae_stride": 8}
    export(
        GOLDEN / "harmon" / "checkpoint.pth",
        plan,
        config=config,
        vae=GOLDEN / "vae" / "kl16_tiny.ckpt",
        tokenizer=folder / "tokenizer",
        defaults={"size": "64", "num_iterations": 4},
        check=False,
    )
    return plan


def test_a_model_that_takes_prompts(drawing_plan: Path, pixel_plan: Path) -> None:
    with served_plan(drawing_plan, pixel_plan) as running:
        about = httpx.get(f"{running.url}/v1/models/{names(running)[0]}").json()
        assert about["takes"] == "prompt"
        body = {"model": names(running)[0], "num_iterations": 2, "steps": "3:2"}
        [image] = post(running.url, prompt="a dog", **body)
        width, height = map(int, about["size"].split("x"))
        assert pixels(image).shape == (height, width, 3)
        sized = post(running.url, prompt="a dog", size=f"{width * 2}x{height}", **body)
        assert pixels(sized[0]).shape == (height, width * 2, 3)
        refused = httpx.post(
            f"{running.url}/v1/images/generations", json={**body, "prompt": "x", "size": "17x17"}
        )
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "size"
        assert post(running.url, model=names(running)[1], prompt="0", num_iterations=2, steps="2")


def test_a_plan_without_pixels_is_refused(golden_plan: Any) -> None:
    worker = Worker("mar", partial(load_plan, golden_plan("mar"), "cpu", 1), JoinAtOnce())
    worker.start()
    assert worker.join(6 * PATIENCE)
    assert "--vae" in (worker.failure or "")
