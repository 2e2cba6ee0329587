"""Plans of the golden models, exported once for all tests."""

import fcntl
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from disa.exporter.export import export

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
CACHE = ROOT / ".cache" / "plans"
CONFIGS = {"harmon": "config.json"}

ExportGolden = Callable[..., Path]


def _fingerprint(*inputs: Path) -> str:
    """A key that changes with the exporter and with what is exported."""
    digest = hashlib.sha256()
    sources = sorted(ROOT.glob("exporter/*.py")) + sorted(ROOT.glob("engines/*.py"))
    for path in [*sources, *inputs]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cached_plan(
    checkpoint: Path,
    name: str,
    config: Path | None = None,
    vae: Path | None = None,
    precision: str = "fp32",
) -> Path:
    """Export a checkpoint, or take the plan that an earlier test of the same code made."""
    inputs = [path for path in (checkpoint, config, vae) if path]
    CACHE.mkdir(parents=True, exist_ok=True)
    plan = CACHE / _fingerprint(*inputs) / f"{name}-{precision}.plan"
    with (CACHE / f"{name}-{precision}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not plan.exists():
            export(checkpoint, plan, config=config, vae=vae, precision=precision)
    return plan


@pytest.fixture(scope="session")
def golden_plan() -> ExportGolden:
    """`golden_plan("mar", precision="fp16")` is the path of that golden model's plan."""

    def make(name: str, precision: str = "fp32", vae: Path | None = None) -> Path:
        folder = GOLDEN / name
        config = folder / CONFIGS.get(name, "architecture.json")
        return cached_plan(folder / "checkpoint.pth", name, config, vae, precision)

    return make


@pytest.fixture(scope="session")
def demo_plan() -> ExportGolden:
    """`demo_plan("fp16")` is the path of the demo model's plan."""

    def make(precision: str = "fp32") -> Path:
        return cached_plan(ROOT / "demo" / "fashion_mar.pth", "fashion", precision=precision)

    return make


@pytest.fixture(scope="session")
def pixel_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model on 8x8 grey pixels, so that a plan with images is quick to make."""
    return ROOT / "tests" / "data" / "pixels.pth"


@pytest.fixture(scope="session")
def pixel_plan(pixel_checkpoint: Path) -> Path:
    """The plan of `pixel_checkpoint`."""
    return cached_plan(pixel_checkpoint, "pixels")


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
