"""disa-serve: the command line."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from disa.commands.serve import main

SECONDS = 120.0
RUN = [sys.executable, "-c", "from disa.commands.serve import main; main(prog_name='disa-serve')"]


def test_it_serves_a_plan(pixel_plan: Path) -> None:
    command = [*RUN, str(pixel_plan), "--port", "0", "--engine", "cpu", "--warm-up-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            retry = httpx.HTTPTransport(retries=3)
            with httpx.Client(base_url=url, transport=retry, timeout=SECONDS) as client:
                while client.get("/health/ready").status_code == 503:
                    assert process.poll() is None
                body = {"prompt": "bag", "num_iterations": 2, "steps": "2"}
                answer = client.post("/v1/images/generations", json=body).json()
            assert answer["size"] == "8x8"
            process.terminate()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def test_a_plan_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    plan = tmp_path / "x.plan"
    plan.write_bytes(b"nothing")
    done = CliRunner().invoke(main, [str(plan), "--port", "0"])
    assert done.exit_code == 1
    assert f"{plan} is not a plan or is damaged" in done.output


def test_the_same_plan_twice_is_refused(pixel_plan: Path) -> None:
    done = CliRunner().invoke(main, [str(pixel_plan), str(pixel_plan), "--port", "0"])
    assert done.exit_code == 1
    assert "different names" in done.output


def test_a_key_file_without_keys_is_refused(pixel_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    done = CliRunner().invoke(main, [str(pixel_plan), "--api-key-file", str(tmp_path / "keys")])
    assert done.exit_code == 1
    assert "the file has no key" in done.output


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-images", "0", "1 to 4096"),
        ("--request-timeout", "soon", "at least 0.1"),
        ("--policy", "none", "static"),
    ],
)
def test_a_setting_that_cannot_be_is_wrong_usage(option: str, value: str, said: str) -> None:
    done = CliRunner().invoke(main, ["x.plan", option, value])
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize("name", ["run", "inspect", "export"])
def test_no_other_command_imports_the_server(name: str) -> None:
    code = (
        f"import sys, disa.commands.{name}\n"
        "heavy = ('disa.server', 'fastapi', 'uvicorn', 'prometheus_client', 'pydantic')\n"
        "print([module for module in heavy if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ray_is_not_imported_without_being_asked_for() -> None:
    code = "import sys, disa.commands.serve, disa.server.run; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
