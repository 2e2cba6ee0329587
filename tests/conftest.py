"""Plans of the golden models, exported once for all tests."""

import fcntl
import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from disa.engines.plan.plan import Plan
from disa.engines.plan.writer import PlanWriter
from disa.exporter.checkpoints.tokenizer import read_tokenizer
from disa.exporter.export import export
from disa.runtime.families.conditions.prompt import TOKENIZER_MEMBER
from disa.runtime.pipeline import Pipeline

from .engines.tiny_graphs import backbone, head, shuffle, write_plan
from .tiny_tokenizer import write_vocabulary

# The same examples each time: `make test` answers for a change; new faults are what fuzzing is for.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
CACHE = ROOT / ".cache" / "plans"
CONFIGS = {"harmon": "config.json"}

ExportGolden = Callable[..., Path]


def _fingerprint(*inputs: Path) -> str:
    """A key that changes with the exporter and with what is exported."""
    digest = hashlib.sha256()
    sources = [p for d in ("exporter", "engines") for p in sorted((ROOT / d).rglob("*.py"))]
    for path in [*sources, *inputs]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cached_plan(
    checkpoint: Path,
    name: str,
    config: Path | None = None,
    vae: Path | None = None,
    precision: str = "fp32",
    cached_backbone: bool = False,
) -> Path:
    """Export a checkpoint, or take the plan that an earlier test of the same code made."""
    name = f"{name}-cached-backbone" if cached_backbone else name
    inputs = [path for path in (checkpoint, config, vae) if path]
    CACHE.mkdir(parents=True, exist_ok=True)
    plan = CACHE / _fingerprint(*inputs) / f"{name}-{precision}.plan"
    with (CACHE / f"{name}-{precision}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not plan.exists():
            export(
                checkpoint,
                plan,
                config=config,
                vae=vae,
                precision=precision,
                cached_backbone=cached_backbone,
            )
    return plan


@pytest.fixture(scope="session")
def golden_plan() -> ExportGolden:
    """`golden_plan("mar", precision="fp16")` is the path of that golden model's plan."""

    def make(
        name: str,
        precision: str = "fp32",
        vae: Path | None = None,
        cached_backbone: bool = False,
    ) -> Path:
        folder = GOLDEN / name
        config = folder / CONFIGS.get(name, "architecture.json")
        checkpoint = folder / "checkpoint.pth"
        return cached_plan(checkpoint, name, config, vae, precision, cached_backbone)

    return make


@pytest.fixture(scope="session")
def demo_plan() -> ExportGolden:
    """`demo_plan("fp16")` is the path of the demo model's plan."""

    def make(precision: str = "fp32") -> Path:
        weights = ROOT / "demo" / "weights"
        vae = weights / "fashion_vae.ckpt"
        return cached_plan(weights / "fashion_mar.pth", "fashion", vae=vae, precision=precision)

    return make


@pytest.fixture(scope="session")
def pixel_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model on 8x8 grey pixels, so that a plan with images is quick to make."""
    return ROOT / "tests" / "data" / "pixels.pth"


@pytest.fixture(scope="session")
def pixel_plan(pixel_checkpoint: Path) -> Path:
    """The plan of `pixel_checkpoint`."""
    return cached_plan(pixel_checkpoint, "pixels")


@pytest.fixture(scope="session")
def cached_backbone_pixels(pixel_checkpoint: Path) -> Path:
    """The plan of `pixel_checkpoint` with a cached backbone."""
    return cached_plan(pixel_checkpoint, "pixels", cached_backbone=True)


def references(name: str) -> list[Path]:
    """The recorded runs of a golden model."""
    found = sorted((GOLDEN / name).glob("*.npz"))
    if not found:
        raise FileNotFoundError(f"no references in {GOLDEN / name}")
    return found


def step_counts(kind: str) -> dict[str, list[int]]:
    """The recorded step counts of a family."""
    counts: dict[str, list[int]] = json.loads((GOLDEN / "schedules.json").read_text())[kind]
    return counts


@pytest.fixture(scope="session")
def pixel_pipeline(pixel_plan: Path) -> Pipeline:
    return Pipeline.from_plan(pixel_plan, "cpu")


@pytest.fixture(scope="session")
def text_plan(golden_plan: ExportGolden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden plan of Harmon with a tokenizer in it."""
    folder = tmp_path_factory.mktemp("harmon")
    return with_tokenizer(golden_plan("harmon"), folder / "text.plan")


def with_tokenizer(source: Path, path: Path) -> Path:
    """A copy of a plan of Harmon at `path`, with a tokenizer in it."""
    data = read_tokenizer(write_vocabulary(path.parent / "tokenizer"), 200)
    with Plan.open(source) as plan, PlanWriter.extend(plan, path) as writer:
        writer.add(TOKENIZER_MEMBER, data)
    return path


@pytest.fixture(scope="session")
def cached_backbone_plans(
    golden_plan: ExportGolden, tmp_path_factory: pytest.TempPathFactory
) -> ExportGolden:
    """`cached_backbone_plans("mar")` is a golden plan with the graphs of a cached backbone."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            path = golden_plan(name, cached_backbone=True)
            if name == "harmon":
                path = with_tokenizer(
                    path, tmp_path_factory.mktemp("cached-backbone") / "harmon.plan"
                )
            made[name] = path
        return made[name]

    return make


@pytest.fixture(scope="session", params=["mar", "harmon"])
def cached_backbone_plan(
    request: pytest.FixtureRequest, cached_backbone_plans: ExportGolden
) -> Path:
    """Such a plan, one of each family."""
    return cached_backbone_plans(request.param)


@pytest.fixture(scope="session")
def plan_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a whole and sound plan with the graphs `head`, `backbone` and `shuffle`."""
    return write_plan(
        tmp_path_factory.mktemp("plan") / "tiny.plan", [head(), backbone(), shuffle()]
    ).read_bytes()


@pytest.fixture
def plan_path(tmp_path: Path, plan_bytes: bytes) -> Path:
    """The path of a copy of that plan."""
    path = tmp_path / "tiny.plan"
    path.write_bytes(plan_bytes)
    return path


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


@pytest.fixture(autouse=True)
def _signals_are_left_alone() -> Iterator[None]:
    """Undo what a test, or a library that it uses, changes in the handling of signals.

    A handler that is left behind may end a later test, and a wakeup descriptor that was closed and
    opened again as another file gets a byte at every signal, which breaks that file's protocol.
    """
    signal.set_wakeup_fd(-1)
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        if handler is not None:  # None: not one of Python's, so it cannot be set again.
            signal.signal(number, handler)
