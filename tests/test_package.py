"""The package as a machine sees it that only runs plans: no PyTorch, no ONNX."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

NEEDED = ("numpy", "onnxruntime", "PIL", "click", "tqdm")
# Shared libraries that wheels put beside their package.
LIBRARIES = ("numpy.libs", "pillow.libs")


@pytest.fixture(scope="module")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages with what `disa[cpu]` installs and nothing else."""
    site = tmp_path_factory.mktemp("site")
    for name in NEEDED:
        folder = Path(str(import_module(name).__file__)).parent
        (site / name).symlink_to(folder)
        for library in LIBRARIES:
            if (folder.parent / library).exists() and not (site / library).exists():
                (site / library).symlink_to(folder.parent / library)
    package = Path(str(import_module("disa").__file__)).parent
    shutil.copytree(package, site / "disa", ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("runtime", "engines", "exporter", "calibration"):
        source = Path(str(import_module(f"disa.{part}").__file__)).parent
        target = site / "disa" / part
        if not target.exists():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.plan"))
    return site


def python(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_nothing_heavy_is_there(small_site: Path) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "print([n for n in ('torch', 'onnx', 'tensorrt', 'matplotlib') if find_spec(n)])"
    )
    assert python(small_site, code).stdout.strip() == "[]"


def test_disa_run_draws_without_pytorch(small_site: Path, pixel_plan: Path, tmp_path: Path) -> None:
    arguments = [str(pixel_plan), "--num", "3", "-o", str(tmp_path), "--steps", "3:2"]
    code = f"from disa.commands.run import main\nmain({arguments!r}, prog_name='disa-run')"
    done = python(small_site, code)
    assert done.returncode == 0, done.stderr
    assert "CPUExecutionProvider" in done.stdout
    assert (tmp_path / "000002.png").exists()
    assert (tmp_path / "grid.png").exists()


def test_the_pipeline_and_inspect_work_without_pytorch(small_site: Path, pixel_plan: Path) -> None:
    code = (
        f"import disa\npipe = disa.Pipeline.from_plan({str(pixel_plan)!r})\n"
        "print(pipe(['bag'], num_iterations=2, steps='2').images.shape)"
    )
    assert python(small_site, code).stdout.strip() == "(1, 8, 8, 1)"
    code = f"from disa.commands.inspect import main\nmain([{str(pixel_plan)!r}, '--check'])"
    assert python(small_site, code).returncode == 0


@pytest.mark.parametrize(
    "code",
    [
        "from disa.commands.export import main\nmain(['x.pth'], prog_name='disa-export')",
        "from disa.commands.verify import main\nmain([PLAN, '--against', 'x.pth'])",
        "import disa\ntry:\n    disa.export\nexcept disa.DisaError as error:\n"
        "    raise SystemExit(str(error))",
    ],
)
def test_what_needs_pytorch_says_how_to_get_it(
    code: str, small_site: Path, pixel_plan: Path
) -> None:
    done = python(small_site, f"PLAN = {str(pixel_plan)!r}\n{code}")
    assert done.returncode == 1
    assert "pip install 'disa[export]'" in done.stderr
    assert "Traceback" not in done.stderr
