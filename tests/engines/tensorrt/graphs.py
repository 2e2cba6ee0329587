"""Small ONNX graphs with the inputs of the real ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from disa.engines.gpu.profile import Range, dimensions, graph_profile
from disa.engines.plan.engine_info import EngineInfo
from disa.engines.plan.manifest import GraphInfo
from disa.engines.plan.plan import Plan
from disa.engines.plan.traits import HOST_ONLY, GraphTraits, Role
from disa.engines.plan.writer import PlanWriter
from disa.engines.session import TensorSpec

from .fake_tensorrt import fake_engine

TOKENS, CHANNELS, WIDTH = 16, 4, 8
MANIFEST_TOKENS = {
    "count": TOKENS,
    "dimensions": {"visible": [0, TOKENS // 2, TOKENS], "predicted": [1, TOKENS]},
}
INNER = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
ONNX_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

HEAD_INPUTS = (
    TensorSpec("x", "float32", ("rows", CHANNELS)),
    TensorSpec("condition", "float32", ("guidance", "rows", WIDTH)),
    TensorSpec("step", "int64", ("rows",)),
    TensorSpec("embedding", "float32", ("steps", WIDTH)),
    TensorSpec("coefficients", "float32", ("steps", 5)),
    TensorSpec("guidance_scale", "float32", ("rows",)),
    TensorSpec("noise", "float32", ("rows", CHANNELS)),
)
HEAD_OUTPUTS = (TensorSpec("next_x", "float32", ("rows", CHANNELS)),)
BACKBONE_INPUTS = (
    TensorSpec("tokens", "float32", ("visible", "batch", CHANNELS)),
    TensorSpec("positions", "int64", (TOKENS, "batch")),
    TensorSpec("visible", "int64", ("visible", "batch")),
    TensorSpec("predicted", "int64", ("predicted", "batch")),
    TensorSpec("class_index", "int64", ("guidance", "batch")),
)
BACKBONE_OUTPUTS = (TensorSpec("condition", "float32", ("guidance", "rows", WIDTH)),)
DECODER_INPUTS = (
    TensorSpec("tokens", "float32", (TOKENS, "batch", CHANNELS)),
    TensorSpec("positions", "int64", (TOKENS, "batch")),
)
DECODER_OUTPUTS = (
    TensorSpec("latents", "float32", ("batch", CHANNELS, 4, 4)),
    TensorSpec("image", "float32", ("batch", CHANNELS, 4, 4)),
)


class Graph:
    """Collects the nodes and constants of a graph."""

    def __init__(self, precision: str) -> None:
        self.inner = INNER[precision]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        """Add a node; its output's name comes back."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def integers(self, *values: int) -> str:
        """A constant of int64."""
        return self.constant(np.array(values, np.int64))

    def constant(self, value: np.ndarray) -> str:
        """A constant."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int) -> str:
        """A random constant."""
        return self.constant(0.4 * self.rng.standard_normal(shape).astype(np.float32))

    def product(self, left: str, right: str, output: str) -> str:
        """A matrix product in the inner precision, fp32 outside."""
        for side in (left, right):
            self.node("Cast", [side], f"{output}_{side}", to=self.inner)
        self.node("MatMul", [f"{output}_{left}", f"{output}_{right}"], f"{output}_inner")
        return self.node("Cast", [f"{output}_inner"], output, to=TensorProto.FLOAT)

    def model(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> onnx.ModelProto:
        """The finished model."""
        values = [
            [helper.make_tensor_value_info(s.name, ONNX_TYPES[s.dtype], s.shape) for s in specs]
            for specs in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "graph", *values, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def head(precision: str = "fp32") -> onnx.ModelProto:
    """A denoising step that depends on all of its inputs."""
    g = Graph(precision)
    g.node("Gather", ["embedding", "step"], "time")
    g.node("Add", ["condition", "time"], "y")
    g.product("x", g.weight(CHANNELS, WIDTH), "wide")
    g.node("Add", ["y", "wide"], "hidden")
    g.node("Gelu", ["hidden"], "active")
    g.product("active", g.weight(WIDTH, CHANNELS), "output")
    first = g.node("Gather", ["output", g.integers(0)], "first", axis=0)
    last = g.node("Gather", ["output", g.integers(-1)], "last", axis=0)
    g.node("Sub", [first, last], "difference")
    g.node("Unsqueeze", ["guidance_scale", g.integers(1)], "scale")
    g.node("Mul", ["difference", "scale"], "guided")
    g.node("Add", ["last", "guided"], "epsilon3")
    g.node("Squeeze", ["epsilon3", g.integers(0)], "epsilon")
    g.node("Gather", ["coefficients", "step"], "row")
    parts = []
    for column, factor in ((0, "x"), (1, "epsilon"), (4, "noise")):
        ends = [g.integers(column), g.integers(column + 1), g.integers(1)]
        g.node("Slice", ["row", *ends], f"c{column}")
        parts.append(g.node("Mul", [f"c{column}", factor], f"part{column}"))
    g.node("Sum", parts, "next_x")
    return g.model(HEAD_INPUTS, HEAD_OUTPUTS)


def backbone(precision: str = "fp32") -> onnx.ModelProto:
    """Tokens scattered onto the grid, attention, and the predicted ones gathered."""
    g = Graph(precision)
    known = g.product("tokens", g.weight(CHANNELS, WIDTH), "known")
    g.node("Transpose", [known], "by_image", perm=[1, 0, 2])
    g.node("Shape", ["by_image"], "extent")
    g.node("Transpose", ["visible"], "visible_by_image", perm=[1, 0])
    g.node("Unsqueeze", ["visible_by_image", g.integers(-1)], "visible_3")
    g.node("Expand", ["visible_3", "extent"], "place")
    g.node("Transpose", ["positions"], "order", perm=[1, 0])
    grid = g.node("Gather", [g.weight(TOKENS, WIDTH), "order"], "grid")
    g.node("ScatterElements", [grid, "place", "by_image"], "filled", axis=1)
    g.node("Gather", [g.weight(11, WIDTH), "class_index"], "classes")
    g.node("Unsqueeze", ["classes", g.integers(2)], "classes_4")
    g.node("Add", ["classes_4", "filled"], "sequence")
    g.node("Transpose", ["sequence"], "keys", perm=[0, 1, 3, 2])
    g.node("Softmax", [g.product("sequence", "keys", "scores")], "weights", axis=-1)
    mixed = g.product("weights", "sequence", "mixed")
    g.node("Transpose", [mixed], "token_major", perm=[0, 2, 1, 3])
    g.node("Shape", ["token_major"], "mixed_extent")
    ends = [g.integers(0), g.integers(1)]
    g.node("Slice", ["mixed_extent", *ends], "guidance_extent")
    g.node("Shape", ["predicted"], "predicted_extent")
    g.node("Unsqueeze", ["predicted", g.integers(0)], "predicted_3")
    g.node("Unsqueeze", ["predicted_3", g.integers(-1)], "predicted_4")
    wide = [g.node("Identity", [g.integers(WIDTH)], "width")]
    g.node("Concat", ["guidance_extent", "predicted_extent", *wide], "wanted", axis=0)
    g.node("Expand", ["predicted_4", "wanted"], "index")
    g.node("GatherElements", ["token_major", "index"], "picked", axis=1)
    g.node("Concat", ["guidance_extent", g.integers(-1), *wide], "flat", axis=0)
    g.node("Reshape", ["picked", "flat"], "condition")
    return g.model(BACKBONE_INPUTS, BACKBONE_OUTPUTS)


def decoder(precision: str = "fp32") -> onnx.ModelProto:
    """Tokens put in their places, and something made of them."""
    g = Graph(precision)
    g.node("Shape", ["tokens"], "extent")
    g.node("Unsqueeze", ["positions", g.integers(-1)], "positions_3")
    g.node("Expand", ["positions_3", "extent"], "place")
    g.node("Mul", ["tokens", g.constant(np.zeros(1, np.float32))], "empty")
    g.node("ScatterElements", ["empty", "place", "tokens"], "placed", axis=0)
    g.node("Transpose", ["placed"], "by_image", perm=[1, 2, 0])
    g.node("Reshape", ["by_image", g.integers(-1, CHANNELS, 4, 4)], "latents")
    g.node("Tanh", ["latents"], "image")
    return g.model(DECODER_INPUTS, DECODER_OUTPUTS)


GRAPHS = {
    "backbone": (backbone, BACKBONE_INPUTS, BACKBONE_OUTPUTS),
    "head": (head, HEAD_INPUTS, HEAD_OUTPUTS),
    "decoder": (decoder, DECODER_INPUTS, DECODER_OUTPUTS),
}
TRAITS = {
    "backbone": GraphTraits(Role.ITERATION, split="batch"),
    "head": GraphTraits(Role.STEP, split="rows"),
    "decoder": GraphTraits(Role.DECODE, quantizable=False, split="batch"),
}


def write_plan(
    path: Path,
    precision: str = "fp32",
    names: Sequence[str] = tuple(GRAPHS),
    backend: str | None = None,
    version: str = "99.1",
    architectures: Sequence[str] = ("sm_89",),
    batch: Range | None = None,
) -> Path:
    """A plan of the graphs above, with fake engines of `backend` if that is given."""
    content = {
        "family": "mar",
        "name": path.stem,
        "precision": precision,
        "model": {},
        "tokens": MANIFEST_TOKENS,
        "defaults": {"num_iterations": 4},
    }
    ranges = dimensions(MANIFEST_TOKENS, {"num_iterations": 4}, batch or Range(1, 2, 4))
    with PlanWriter(path, content) as writer:
        for name in names:
            make, inputs, outputs = GRAPHS[name]
            model = make(precision)
            file = path.with_name(f"{name}.onnx")
            onnx.save_model(
                model,
                file,
                save_as_external_data=True,
                location=f"{name}.data",
                size_threshold=128,
            )
            data = path.with_name(f"{name}.data")
            writer.add_graph(
                name, file, [data] if data.exists() else [], inputs, outputs, TRAITS[name]
            )
            if backend:
                profile = graph_profile(name, inputs, ranges)
                info = EngineInfo(
                    graph=name,
                    backend=backend,
                    version=version,
                    precision=precision,
                    architectures=tuple(architectures),
                    profiles=(profile,),
                    member=f"engines/{backend}/{name}.engine",
                    details={"cuda": "13", "least_sm": 80},
                )
                graph = writer._graphs[name]
                # onnx.save_model moved the weights out of `model`.
                writer.add_engine(
                    info, fake_engine(make(precision).SerializeToString(), graph, profile)
                )
    return path


def head_arrays(
    rows: int, steps: int, guidance: int = 2, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Constants, per-step inputs and state of a loop over the head."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    constants = {
        "condition": normal(guidance, rows, WIDTH),
        "embedding": normal(steps, WIDTH),
        "coefficients": 0.5 * normal(steps, 5),
        "guidance_scale": 1 + abs(normal(rows)),
    }
    per_step = {
        "step": np.repeat(np.arange(steps)[:, None], rows, axis=1),
        "noise": normal(steps, rows, CHANNELS),
    }
    return constants, per_step, {"x": normal(rows, CHANNELS)}


def backbone_arrays(
    batch: int, visible: int, predicted: int, guidance: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs of the backbone."""
    rng = np.random.default_rng(seed)
    positions = rng.permuted(np.tile(np.arange(TOKENS)[:, None], batch), axis=0)
    return {
        "tokens": rng.standard_normal((visible, batch, CHANNELS)).astype(np.float32),
        "positions": positions,
        "visible": positions[:visible].copy(),
        "predicted": positions[visible : visible + predicted].copy(),
        "class_index": rng.integers(0, 11, (guidance, batch)),
    }


def unpack(plan: Plan, graph: GraphInfo, folder: Path) -> Path:
    """The ONNX file of a graph with copies of its weights, which is what `onnx` insists on."""
    folder.mkdir(exist_ok=True)
    for member in (graph.onnx, *graph.data):
        (folder / Path(member).name).write_bytes(plan.read(member))
    return folder / Path(graph.onnx).name


def with_fake_engines(path: Path, backend: str, batch: Range) -> Path:
    """The plan at `path` with a fake engine for every graph that a GPU runs, beside it."""
    output = path.with_name(f"{path.stem}-{backend}.plan")
    with Plan.open(path) as plan, PlanWriter.extend(plan, output) as writer:
        manifest = plan.manifest
        ranges = dimensions(manifest.tokens, manifest.defaults, batch)
        for name, graph in manifest.graphs.items():
            if graph.traits.role in HOST_ONLY:
                continue
            model = onnx.load(unpack(plan, graph, path.with_name("unpacked")))
            profile = graph_profile(name, graph.inputs, ranges)
            info = EngineInfo(
                graph=name,
                backend=backend,
                version="99.1",
                precision=manifest.precision,
                architectures=("sm_89",),
                profiles=(profile,),
                member=f"engines/{backend}/{name}.engine",
                details={"cuda": "13", "least_sm": 80},
            )
            writer.add_engine(info, fake_engine(model.SerializeToString(), graph, profile))
    return output
