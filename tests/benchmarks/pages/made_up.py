"""Records that nobody measured."""

from collections.abc import Mapping
from typing import Any

from benchmarks.official.contenders import BF16, FP32

MACHINE = {"processor": "Abacus", "cores": 2, "load": 0.5, "load_after": 0.75}


def race(
    batch: int = 1,
    iterations: int = 64,
    official: float = 60.0,
    plans: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A race in which the original under bf16 takes 30 seconds.

    Args:
        plans: seconds of each plan by its contender's name.
    """
    plans = {"disa cpu": 6.0, "disa cpu int8": 3.0} if plans is None else plans

    def result(seconds: float) -> dict[str, Any]:
        return {
            "seconds_an_image": seconds,
            "backbone_seconds_an_image": seconds / 2,
            "head_seconds_an_image": seconds / 2,
            "backbone_seconds_a_call": [seconds / 128],
            "head_seconds_a_step": [0.25],
            "difference": 1e-6,
        }

    return {
        "kind": "official_loop",
        "command": "python -m benchmarks.official_loop made-up",
        "date": "2000-01-01",
        "machine": MACHINE,
        "versions": {"torch": "2.13"},
        "shapes": "mar_b",
        "batch_size": batch,
        "iterations": iterations,
        "schedule": "linear 50:5",
        "every": 32,
        "measured": [0, 32, iterations - 1],
        "threads": 1,
        "clock": "cpu",
        "flops_an_image": 4e12,
        "rates": {"fp32": 1e12, "bf16": 2e12},
        "contenders": {
            FP32: result(official),
            BF16: result(30.0),
            **{name: result(seconds) for name, seconds in plans.items()},
        },
    }


def bench(name: str = "mar_b-random", peak: int = 110) -> dict[str, Any]:
    return {
        "format": 1,
        "command": "disa-bench made-up",
        "date": "2000-01-01",
        "plan": {"name": name, "bytes": 100},
        "machine": MACHINE,
        "versions": {"onnxruntime": "1.32"},
        "threads": None,
        "bandwidth": 2e10,
        "repeat": 3,
        "warmup": 0,
        "engines": {
            "cpu": {
                "runs": "CPU",
                "load_seconds": 1.5,
                "first_image_seconds": 9.0,
                "matrix_rate": 1e11,
            }
        },
        "variants": [
            {
                "engine": "cpu",
                "batch_size": 1,
                "iterations": 64,
                "options": {"steps": "50:5", "strategy": "linear"},
                "seconds_an_image": {"median": 7.25, "p90": 8.0, "all": [7.25]},
                "cpu_seconds_an_image": 12.5,
                "images_a_second": 0.125,
                "parts": {"backbone": 5.0, "head": 2.0, "host": 0.25},
                "head_calls": 1763,
                "peak_memory_bytes": peak,
                "floor": {"seconds_an_image": 4.0},
                "near_floor": 0.55,
            }
        ],
    }


def growth() -> dict[str, Any]:
    parts = {"backbone": 0.25, "head": 0.125, "host": 0.125}
    entry = {"value": 77, "seconds": 0.5, "parts": parts, "flops": 7e9}
    return {
        "kind": "growth",
        "date": "2000-01-01",
        "machine": MACHINE,
        "versions": {"onnxruntime": "1.32"},
        "repeat": 2,
        "threads": None,
        "axes": {"steps": [entry]},
    }
