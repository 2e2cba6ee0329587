"""The page for people, in a real Chromium. Screenshots go to outputs/browser."""

import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from disa.runtime.generation import Sample
from disa.server.settings import ServerSettings

from ..conftest import RunningServer, running_server
from ..fake_family import CLASS_NAMES, FakeFamily

pytestmark = pytest.mark.browser

SHOTS = Path(__file__).parents[3] / "outputs" / "browser"
TIMEOUT_MS = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "Chromium is missing: install the package chromium"
    with sync_playwright() as playwright:
        # Containers run as root, where Chromium's sandbox cannot start.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running() -> Iterator[RunningServer]:
    texts = FakeFamily(0.02)
    texts.classes = None
    with running_server({"classes": FakeFamily(0.05), "texts": texts}) as running:
        yield running


@pytest.fixture
def page(browser: Browser, running: RunningServer) -> Iterator[Page]:
    yield from opened(browser, running.url)


def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page without errors in its console and without a request to elsewhere."""
    problems: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.on("console", lambda message: message.type == "error" and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: elsewhere(request.url, url) and problems.append(request.url))
    page.goto(url)
    expect(page.get_by_role("status")).to_be_visible()
    expect(page.locator("#queue")).to_contain_text("ready", timeout=TIMEOUT_MS)
    yield page
    context.close()
    # Chromium writes a line for every answer that is an error; the tests look at these.
    assert [text for text in problems if "status of 400" not in text] == []


def elsewhere(address: str, url: str) -> bool:
    return not address.startswith((url, "data:"))


def shoot(page: Page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_images_appear_and_sharpen_and_the_chart_says_what_they_took(
    page: Page, running: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threading.Event()

    def hold(samples: Sequence[Sample]) -> None:
        if samples[0].iteration == 2:
            seen.wait(TIMEOUT_MS / 1000)

    monkeypatch.setattr(running.family, "failing", hold)
    page.get_by_label("Class", exact=True).fill("sneaker")
    page.get_by_role("spinbutton", name="Images").fill("2")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("textbox", name="Steps").fill("9")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("img", name="preview of sneaker")).to_have_count(2)
    shoot(page, "previews")
    seen.set()
    expect(page.get_by_role("img", name="sneaker", exact=True)).to_have_count(2)
    expect(page.get_by_text("seed 7, image 1")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("2 of 2 images of sneaker done")
    expect(page.locator("#saving")).to_have_text("An image takes 36 denoising steps.")
    expect(page.locator("#chart .bar")).to_have_count(4)
    page.get_by_text("As a table").click()
    assert page.locator("#rows tr").all_inner_texts() == [f"{i}\t9" for i in range(1, 5)]
    shoot(page, "images")


def test_a_link_repeats_an_image(page: Page) -> None:
    page.get_by_label("Seed").fill("3")
    page.get_by_role("spinbutton", name="Images").fill("2")
    page.get_by_label("Strategy").select_option("constant")
    page.get_by_role("button", name="Generate").click()
    images = page.get_by_role("img", name="apple", exact=True)
    expect(images).to_have_count(2)
    second = images.nth(1).get_attribute("src")
    page.get_by_role("link", name="Repeat seed 3, image 1").click()
    expect(images).to_have_count(1)
    assert images.get_attribute("src") == second
    expect(page.get_by_label("Strategy")).to_have_value("constant")
    page.reload()
    expect(images).to_have_count(1)
    assert images.get_attribute("src") == second


def test_a_class_that_does_not_exist_is_answered_with_a_near_one(page: Page) -> None:
    page.get_by_label("Class", exact=True).fill("sneekers")
    with page.expect_response("**/generations") as answer:
        page.get_by_role("button", name="Generate").click()
    assert answer.value.status == 400
    expect(page.get_by_role("alert")).to_contain_text("did you mean 'sneaker'?")
    shoot(page, "problem")


def test_classes_are_listed_by_name(page: Page) -> None:
    listed = page.locator("#classes option").evaluate_all("all => all.map(o => o.value)")
    assert listed == list(CLASS_NAMES)


def test_prompts_for_a_model_that_takes_them(page: Page) -> None:
    page.get_by_label("Model").select_option("texts")
    page.get_by_label("Prompt").fill("a dog & a <b>cat</b>")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("img", name="a dog & a <b>cat</b>", exact=True)).to_have_count(4)
    page.get_by_role("link", name="Repeat").first.click()
    expect(page.get_by_role("img", name="a dog & a <b>cat</b>", exact=True)).to_have_count(1)
    expect(page.get_by_label("Model")).to_have_value("texts")


def test_images_are_those_of_the_model_that_is_shown(page: Page) -> None:
    held: list[Any] = []
    page.route("**/v1/models/texts", lambda route: held.append(route))
    page.get_by_label("Model").select_option("texts")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_have_text("The model texts is not loaded yet.")
    expect(page.locator("#grid img")).to_have_count(0)
    page.get_by_label("Model").select_option("classes")
    page.get_by_role("spinbutton", name="Images").fill("1")
    held[0].continue_()
    page.wait_for_load_state("networkidle")
    expect(page.get_by_label("Class", exact=True)).to_be_visible()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("img", name="apple", exact=True)).to_have_count(1)


def test_a_link_to_a_model_that_is_not_served(page: Page) -> None:
    page.goto(f"{page.url}#model=other&prompt=0")
    expect(page.get_by_role("alert")).to_have_text("This server has no model other.")
    expect(page.get_by_label("Model")).to_have_value("classes")


def test_what_runs_can_be_stopped(page: Page, running: RunningServer) -> None:
    page.get_by_label("AR iterations").fill("64")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#chart .bar").nth(3)).to_be_attached()
    shoot(page, "running")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(page.locator("#queue")).to_contain_text("0 images running")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_the_images_of_all_replicas_are_counted(browser: Browser, running: RunningServer) -> None:
    context = browser.new_context()
    page = context.new_page()
    models = {name: {"state": "ready", "running": 2, "waiting": 1} for name in running.families}
    state = {"status": "ready", "replicas": [{"host": "a", "models": models}] * 3}
    page.route("**/health/ready", lambda route: route.fulfill(json=state))
    page.goto(running.url)
    expect(page.locator("#queue")).to_have_text("ready: 12 images running, 6 waiting")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("link", name="Repeat")).to_have_count(4)
    context.close()


def test_the_keyboard_is_enough(page: Page) -> None:
    page.get_by_label("Class", exact=True).focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("pear")
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name="pear", exact=True)).to_have_count(4)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.text"))
    for name in ("model", "class", "n", "seed", "guidance_scale", "steps", "generate", "Repeat"):
        assert name in reached


def test_everything_has_a_name(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("link", name="Repeat")).to_have_count(4)
    page.locator("#more summary").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button, a, img, svg")]
            .filter((e) => e.checkVisibility())
            .filter((e) => !(e.labels?.length || e.getAttribute("aria-label") || e.alt
                || e.getAttribute("aria-labelledby") || e.textContent.trim()))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Browser, running: RunningServer, scheme: Any) -> None:
    for page in opened(browser, running.url, color_scheme=scheme):
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("link", name="Repeat")).to_have_count(4)
        for selector in ("h1", "#queue", "label", "small", "#generate", "figcaption p", "a", "p"):
            shown = page.locator(f"{selector}:visible").last
            assert contrast(shown) >= 4.5, f"{selector} in {scheme}"
        shoot(page, scheme)


def contrast(locator: Any) -> float:
    """WCAG 2.2's contrast ratio of an element's text to what lies behind it."""
    colors = locator.evaluate(
        """(element) => {
            let behind = element;
            const back = (e) => getComputedStyle(e).backgroundColor;
            while (behind && back(behind) === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(element).color, back(behind ?? document.body)];
        }"""
    )
    lighter, darker = sorted(map(luminance, colors), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in color.removeprefix("rgb(").rstrip(")").split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_phone_shows_all_of_it(browser: Browser, running: RunningServer) -> None:
    for page in opened(browser, running.url, viewport={"width": 360, "height": 740}):
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("link", name="Repeat")).to_have_count(4)
        page.locator("#more summary").click()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, "it can be scrolled sideways"
        shoot(page, "phone")


def test_a_server_that_wants_a_key(browser: Browser) -> None:
    with running_server(settings=ServerSettings(port=0, api_keys=("secret-key",))) as running:
        context = browser.new_context()
        page = context.new_page()
        page.goto(running.url)
        expect(page.get_by_role("alert")).to_contain_text("API key is missing")
        page.get_by_label("API key").fill("secret-key")
        page.get_by_label("API key").press("Tab")
        expect(page.get_by_role("textbox", name="Steps")).to_be_visible()
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("link", name="Repeat")).to_have_count(4)
        context.close()
