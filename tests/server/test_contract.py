"""OpenAI's images API, as the official client and curl use it."""

import base64
import io
import json
import subprocess
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from disa.runtime.generation import Request
from disa.runtime.sampling.noise import PhiloxNoise

from .conftest import PATIENCE, RunningServer, running_server
from .fake_family import CLASS_NAMES, FakeFamily, picture


@pytest.fixture(scope="module")
def served() -> Iterator[RunningServer]:
    """One server for all of these tests: none changes it."""
    with running_server() as running:
        yield running


@pytest.fixture
def sdk(served: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE
    ) as client:
        yield client


def pixels(b64: str | None) -> np.ndarray:
    assert b64 is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def expected(label: int, seed: int, index: int = 0, iteration: int = 4, **options: object):
    made = FakeFamily().options(options)
    return picture(Request(label, made, PhiloxNoise(seed, index)), iteration)[..., 0]


def test_an_image_is_that_of_its_class_seed_and_index(sdk: openai.OpenAI) -> None:
    answer = sdk.images.generate(model="fake", prompt="sneaker", n=3, extra_body={"seed": 7})
    assert answer.data is not None
    for index, image in enumerate(answer.data):
        np.testing.assert_array_equal(pixels(image.b64_json), expected(3, 7, index))
        assert image.model_extra["seed"] == 7
        assert image.model_extra["index"] == index
        assert image.model_extra["steps"] == [3, 3, 3, 3]
        assert image.model_extra["head_calls"] == 12
    assert (answer.size, answer.output_format, answer.background) == ("16x16", "png", "opaque")
    assert answer.usage is not None
    assert answer.created > 1_600_000_000


@pytest.mark.parametrize("prompt", ["3", "Sneaker", " sneaker "])
def test_a_prompt_names_a_class(sdk: openai.OpenAI, prompt: str) -> None:
    answer = sdk.images.generate(prompt=prompt, extra_body={"seed": 1})
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), expected(3, 1))


def test_our_own_fields(served: RunningServer, client: httpx.Client) -> None:
    body = {"class_label": 1, "seed": [5, 6], "n": 2, "first_image": 9, "steps": "8"}
    body |= {"num_iterations": 2, "strategy": "constant", "guidance_scale": 3}
    answer = client.post("/v1/images/generations", json=body).json()
    for seed, image in zip((5, 6), answer["data"], strict=True):
        wanted = expected(1, seed, 9, 2, steps="8", num_iterations=2)
        np.testing.assert_array_equal(pixels(image["b64_json"]), wanted)
        assert (image["seed"], image["index"], image["steps"]) == (seed, 9, [8, 8])
        assert image["seconds"].keys() == {"queue", "model"}


def test_a_seed_is_chosen_and_told(sdk: openai.OpenAI) -> None:
    first = sdk.images.generate(prompt="pear").data[0]
    seed = first.model_extra["seed"]
    again = sdk.images.generate(prompt="pear", extra_body={"seed": seed}).data[0]
    assert first.b64_json == again.b64_json
    assert sdk.images.generate(prompt="pear").data[0].model_extra["seed"] != seed


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(sdk: openai.OpenAI, kind: str) -> None:
    answer = sdk.images.generate(prompt="0", output_format=kind, extra_body={"seed": 0})
    data = base64.b64decode(answer.data[0].b64_json)
    assert Image.open(io.BytesIO(data)).format == kind.upper()
    if kind != "png":
        small = sdk.images.generate(prompt="0", output_format=kind, output_compression=5)
        assert len(base64.b64decode(small.data[0].b64_json)) < len(data)


def test_an_address_is_answered_and_forgotten(sdk: openai.OpenAI, client: httpx.Client) -> None:
    answer = sdk.images.generate(
        prompt="0", response_format="url", output_format="webp", extra_body={"seed": 0}
    )
    url = answer.data[0].url
    assert answer.data[0].b64_json is None
    got = client.get(url)
    assert got.status_code == 200
    assert got.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(got.content)).size == (16, 16)
    assert client.delete(url).json()["deleted"] is True
    for gone in (client.get(url), client.delete(url)):
        assert gone.status_code == 404
        assert gone.json()["error"]["code"] == "not_found"


def test_a_stream_with_partial_images(sdk: openai.OpenAI) -> None:
    events = list(
        sdk.images.generate(
            prompt="pear", n=2, stream=True, partial_images=3, extra_body={"seed": 4}
        )
    )
    for number in range(2):
        mine = [event for event in events if event.model_extra["image"] == number]
        assert [e.type for e in mine] == ["image_generation.partial_image"] * 3 + [
            "image_generation.completed"
        ]
        assert [e.partial_image_index for e in mine[:3]] == [0, 1, 2]
        for iteration, event in enumerate(mine, 1):
            wanted = expected(1, 4, number, iteration)
            np.testing.assert_array_equal(pixels(event.b64_json), wanted)
        assert mine[-1].model_extra["seed"] == 4
        assert mine[-1].usage.total_tokens == 0


def test_a_stream_without_partial_images(sdk: openai.OpenAI) -> None:
    events = list(sdk.images.generate(prompt="pear", stream=True))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_progress_is_told_when_it_is_asked_for(client: httpx.Client) -> None:
    body = {"prompt": "0", "stream": True, "progress": True, "steps": "5"}
    with client.stream("POST", "/v1/images/generations", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines]
    advanced = [e for e in events if e["type"] == "image_generation.progress"]
    assert [(e["iteration"], e["iterations"], e["steps"]) for e in advanced] == [
        (iteration, 4, 5) for iteration in range(1, 5)
    ]


def test_models(sdk: openai.OpenAI, client: httpx.Client) -> None:
    assert [model.id for model in sdk.models.list()] == ["fake"]
    assert sdk.models.retrieve("fake").owned_by == "disa"
    about = client.get("/v1/models/fake").json()
    assert about["class_names"] == list(CLASS_NAMES)
    assert about["size"] == "16x16"
    names = [option["name"] for option in about["options"]]
    assert names == ["num_iterations", "steps", "strategy", "guidance_scale"]
    assert about["options"][0]["default"] == 4
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("other")


def test_the_description_has_the_options_of_the_model(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    post = description["paths"]["/v1/images/generations"]["post"]
    properties = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"prompt", "seed", "steps", "guidance_scale"} <= properties.keys()
    assert "schedule" not in properties, "a client could name files of the server"
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": "sneekers"}, "prompt", "did you mean 'sneaker'?"),
        ({"prompt": "4"}, "prompt", "classes 0 to 3"),
        ({"prompt": "x" * 30_000}, "prompt", "name or number of a class"),
        ({"prompt": "x" * 32_001}, "prompt", "at most 32000"),
        ({"prompt": "pear", "class_label": 0}, "class_label", "different classes"),
        ({"n": 0, "prompt": "0"}, "n", "greater than or equal to 1"),
        ({"n": 11, "prompt": "0"}, "n", "less than or equal to 10"),
        ({"size": "512x512", "prompt": "0"}, "size", "this model generates 16x16"),
        ({"size": "big", "prompt": "0"}, "size", "WIDTHxHEIGHT"),
        ({"response_format": "gif", "prompt": "0"}, "response_format", "'b64_json' or 'url'"),
        ({"output_format": "gif", "prompt": "0"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"output_compression": 101, "prompt": "0"}, "output_compression", "100"),
        ({"output_compression": 50, "prompt": "0"}, "output_compression", "jpeg and webp"),
        ({"partial_images": 4, "prompt": "0", "stream": True}, "partial_images", "3"),
        ({"partial_images": 1, "prompt": "0"}, "partial_images", "needs stream"),
        ({"progress": True, "prompt": "0"}, "progress", "needs stream"),
        ({"response_format": "url", "stream": True, "prompt": "0"}, "response_format", "b64_json"),
        ({"background": "transparent", "prompt": "0"}, "background", "opaque"),
        ({"seed": -1, "prompt": "0"}, "seed", "greater than or equal to 0"),
        ({"seed": [1, 2], "prompt": "0"}, "seed", "a list of 1, one for each image"),
        ({"seed": "x", "prompt": "0"}, "seed", "valid integer"),
        ({"guidance_scale": 1000, "prompt": "0"}, "guidance_scale", "less than 1000"),
        ({"guidance_scale": "3", "prompt": "0"}, "guidance_scale", "valid number"),
        ({"num_iterations": 65, "prompt": "0"}, "num_iterations", "64"),
        ({"strategy": "never", "prompt": "0"}, "strategy", "'linear' or 'constant'"),
        ({"steps": "fast", "prompt": "0"}, "steps", "UPPER:LOWER"),
        ({"schedule": "/etc/passwd", "prompt": "0"}, "schedule", "no parameter"),
        ({"sede": 1, "prompt": "0"}, "sede", "did you mean seed?"),
        ({}, "prompt", "nothing to generate"),
    ],
)
def test_what_is_wrong_is_named(
    sdk: openai.OpenAI, fields: dict[str, object], param: str, says: str
) -> None:
    body = {"prompt": None, **fields}
    with pytest.raises(openai.BadRequestError) as raised:
        sdk.images.generate(prompt=None, extra_body=body)  # type: ignore[call-overload]
    error = raised.value
    assert error.param == param
    assert error.type == "invalid_request_error"
    assert says in error.body["message"]  # type: ignore[index]


def test_a_model_that_is_not_served(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="the models are fake") as raised:
        sdk.images.generate(model="dall-e-3", prompt="0")
    assert raised.value.code == "model_not_found"


def test_models_are_served_side_by_side() -> None:
    texts = FakeFamily()
    texts.classes = None
    with running_server({"classes": FakeFamily(), "texts": texts}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["classes", "texts"]
        made = client.images.generate(model="texts", prompt="a cat", extra_body={"seed": 0})
        options = texts.options({})
        wanted = picture(Request("a cat", options, PhiloxNoise(0, 0)), 4)[..., 0]
        np.testing.assert_array_equal(pixels(made.data[0].b64_json), wanted)
        with pytest.raises(openai.BadRequestError, match="takes a prompt"):
            client.images.generate(model="texts", prompt="a", extra_body={"class_label": 1})
        with pytest.raises(openai.BadRequestError, match="empty"):
            client.images.generate(model="texts", prompt=" ")
        assert client.images.generate(prompt="pear").model_extra["model"] == "classes"


def test_the_same_by_curl(served: RunningServer) -> None:
    command = ["curl", "--silent", "--show-error", "--max-time", "20"]
    command += [f"{served.url}/v1/images/generations", "-H", "Content-Type: application/json"]
    body = {"prompt": "pear", "seed": 2, "response_format": "url"}
    done = subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, check=True)
    [image] = json.loads(done.stdout)["data"]
    got = subprocess.run(["curl", "--silent", image["url"]], capture_output=True, check=True)
    found = np.asarray(Image.open(io.BytesIO(got.stdout)))
    np.testing.assert_array_equal(found, expected(1, 2))
    stream = json.dumps({"prompt": "pear", "stream": True, "partial_images": 1})
    done = subprocess.run([*command, "-N", "-d", stream], capture_output=True, check=True)
    events = [line for line in done.stdout.decode().splitlines() if line.startswith("event: ")]
    assert events == [
        "event: image_generation.partial_image",
        "event: image_generation.completed",
    ]
