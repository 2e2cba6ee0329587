"""The console scripts: each imports its command after Ctrl-C is handled."""

import sys
from importlib import import_module

from .interrupt import INTERRUPTS, leave


def start(name: str) -> None:
    """Run the command `disa-NAME`."""
    INTERRUPTS.install()
    command = f"disa-{name}"
    try:
        main = import_module(f".{name}", __package__).main
    except KeyboardInterrupt:
        leave(command)
    except MemoryError:
        sys.exit(f"{command}: not enough memory to start")
    except ImportError as error:
        if INTERRUPTS.recently():
            leave(command)
        sys.exit(f"{command}: {error}: install disa again, or give it more memory")
    main(prog_name=command)


def export() -> None:
    """disa-export."""
    start("export")


def run() -> None:
    """disa-run."""
    start("run")


def verify() -> None:
    """disa-verify."""
    start("verify")


def inspect() -> None:
    """disa-inspect."""
    start("inspect")


def calibrate() -> None:
    """disa-calibrate."""
    start("calibrate")


def bench() -> None:
    """disa-bench."""
    start("bench")


def serve() -> None:
    """disa-serve."""
    start("serve")


def evaluate() -> None:
    """disa-evaluate."""
    start("evaluate")
