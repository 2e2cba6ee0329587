"""Compares the inputs of a plan's graphs with the counts in its manifest.

Both are read from the same untrusted file, and arrays are allocated by the counts.
"""

from collections.abc import Mapping

from ...engines.plan.plan import Plan
from ...engines.session import Dimension
from ...errors import DamagedFile

Shape = tuple[Dimension, ...]
Signature = Mapping[str, Mapping[str, Shape]]
"""Graph -> input -> its shape, for the inputs whose shapes follow from the counts."""


def check_signature(plan: Plan, signature: Signature) -> None:
    """Compare a plan's graphs with a signature.

    Raises:
        DamagedFile: an input is missing or has another shape.
    """
    for name, inputs in signature.items():
        specs = {spec.name: spec for spec in plan.graph(name).inputs}
        for tensor, shape in inputs.items():
            if tensor not in specs or specs[tensor].shape != shape:
                stated = f"[{', '.join(map(str, shape))}]"
                actual = str(specs[tensor]) if tensor in specs else "no such input"
                raise DamagedFile(
                    f"{plan.path}: by the counts in the manifest the graph {name} takes {tensor} "
                    f"{stated}, and it has {actual}: export the checkpoint again"
                )
