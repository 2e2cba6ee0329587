"""One small model in the layouts of the trainers that people use.

Every layout holds the same averaged weights and deliberately different raw ones, so that a loader
that takes the wrong ones is found out.
"""

import argparse
import collections
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass
class Source:
    """Averaged and raw weights of one model, and its training options."""

    averaged: State
    raw: State
    args: argparse.Namespace


def under(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def inside(wrapper: str, state: State) -> State:
    """A wrapper's name inside the keys of every block."""
    result = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0].endswith("_blocks"):
            key = ".".join([*parts[:2], wrapper, *parts[2:]])
        result[key] = tensor
    return result


def table() -> Mapping[Any, Any]:
    result: Any = collections.defaultdict(dict)
    result["a"] = {1: 2}
    return result


def random_states() -> dict[str, Any]:
    return {
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    }


def adam(state: State) -> dict[str, Any]:
    moments = {i: {"step": 3, "exp_avg": t, "exp_avg_sq": t} for i, t in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 1e-4}]}


AVERAGED: dict[str, tuple[str, Callable[[Source], Any]]] = {
    "MAR": (
        "model_ema",
        lambda s: {"model": s.raw, "model_ema": s.averaged, "optimizer": adam(s.raw)},
    ),
    "DiT": ("ema", lambda s: {"model": s.raw, "ema": s.averaged, "opt": adam(s.raw)}),
    "timm": ("state_dict_ema", lambda s: {"state_dict": s.raw, "state_dict_ema": s.averaged}),
    "BasicSR": ("params_ema", lambda s: {"params": s.raw, "params_ema": s.averaged}),
    "nested": (
        "model_ema.module",
        lambda s: {"model": s.raw, "model_ema": {"module": s.averaged, "decay": 0.9999}},
    ),
    "nested with counters": (
        "model_ema.module",
        lambda s: {
            "model": s.raw,
            "model_ema": {"module": s.averaged, "decay": torch.tensor(0.9999)},
        },
    ),
    "ema_pytorch": (
        "ema.ema_model",
        lambda s: {
            "model": s.raw,
            "ema": {
                **under("online_model.", s.raw),
                **under("ema_model.", s.averaged),
                "initted": torch.tensor(True),
                "step": torch.tensor(7),
            },
        },
    ),
    "Lightning with a second model": (
        "state_dict.model_ema",
        lambda s: {
            "state_dict": {**under("model.", s.raw), **under("model_ema.", s.averaged)},
            "global_step": 3,
        },
    ),
    "Lightning with LitEma": (
        "state_dict.model_ema",
        lambda s: {
            "state_dict": {
                **under("model.", s.raw),
                **{"model_ema." + k.replace(".", ""): t for k, t in s.averaged.items()},
                "model_ema.decay": torch.tensor(0.9999),
                "model_ema.num_updates": torch.tensor(4),
            }
        },
    ),
    "Lightning with a callback": (
        "callbacks.EMACallback.ema_state_dict",
        lambda s: {
            "state_dict": under("model.", s.raw),
            "callbacks": {"EMACallback": {"ema_state_dict": under("model.", s.averaged)}},
        },
    ),
    "Lightning's WeightAveraging": (
        "state_dict",
        lambda s: {
            "state_dict": under("model.", s.averaged),
            "current_model_state": under("model.", s.raw),
            "averaging_state": {"n_averaged": torch.tensor(5)},
        },
    ),
    "one object twice": (
        "model_ema",
        lambda s: {"model": s.averaged, "model_ema": s.averaged},
    ),
    "compiled blocks": (
        "model_ema",
        lambda s: {"model": s.raw, "model_ema": inside("_orig_mod", s.averaged)},
    ),
}
"""Name -> the key that is taken, and the document."""

ALONE: dict[str, tuple[str, Callable[[Source], Any]]] = {
    "plain": (".", lambda s: s.averaged),
    "DDP": ("model", lambda s: {"model": under("module.", s.averaged)}),
    "DDP and a counter": (
        ".",
        lambda s: {**under("module.", s.averaged), "n_averaged": torch.tensor(5)},
    ),
    "DeepSpeed": (
        "module",
        lambda s: {"module": s.averaged, "ds_config": {"zero": 1}, "ds_version": "0.14"},
    ),
    "Lightning": ("state_dict", lambda s: {"state_dict": under("model.", s.averaged)}),
    "a model in a model": (".", lambda s: under("mar.", s.averaged)),
    "compiled DDP": (".", lambda s: under("module._orig_mod.", s.averaged)),
    "FSDP": (
        ".",
        lambda s: under("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", s.averaged)),
    ),
    "activation checkpointing": (
        ".",
        lambda s: inside("_checkpoint_wrapped_module", under("net.", s.averaged)),
    ),
    "PEFT without adapters": (".", lambda s: under("base_model.model.", s.averaged)),
    "random states": ("model", lambda s: {"model": s.averaged, "rng": random_states()}),
    "defaultdict": ("model", lambda s: {"model": s.averaged, "optimizer": {"state": table()}}),
    "empty average": ("model", lambda s: {"model": s.averaged, "model_ema": {}, "ema": None}),
    "settings of an average": (
        "model",
        lambda s: {"model": s.averaged, "ema_decay": 0.99, "use_ema": False},
    ),
}

UNCLEAR: dict[str, tuple[str, Callable[[Source], Any]]] = {
    "shadow parameters": (
        "no names for its tensors",
        lambda s: {"model": s.raw, "ema": {"shadow_params": list(s.averaged.values())}},
    ),
    "NeMo": (
        "no names for its tensors",
        lambda s: {
            "state_dict": s.raw,
            "optimizer_states": [{"opt": adam(s.raw), "ema": tuple(s.averaged.values())}],
        },
    ),
    "two averages": (
        "more than once",
        lambda s: {"model": s.raw, "ema_0.999": s.averaged, "ema_0.9999": s.averaged},
    ),
    "renamed tensors": (
        "not recognised",
        lambda s: {"model": s.raw, "ema": {f"p{i}": t for i, t in enumerate(s.averaged.values())}},
    ),
    "numbers for names": (
        "not recognised",
        lambda s: {"model": s.raw, "ema": dict(enumerate(s.averaged.values()))},
    ),
    "two models": (
        "several sets of weights",
        lambda s: {"student": s.raw, "teacher": s.averaged},
    ),
}
"""Name -> part of the refusal, and the document."""
