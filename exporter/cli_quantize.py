"""The part of disa-export that quantises. It needs the packages that exporting needs."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..calibration.quantization import Quantized, QuantizedGraph, QuantizeOptions, quantize
from ..errors import DisaError
from ..runtime.prompt import read_prompts
from .quantize import Format
from .scratch import scratch_folder

MakePlan = Callable[[Path], object]


def quantize_options(
    precision: str,
    images: int,
    tolerance: float | None,
    token_tolerance: float,
    spread_tolerance: float,
    prompts: Sequence[str],
    prompt_file: Path | None,
    check: bool,
) -> QuantizeOptions:
    """The arguments that `quantization_options` and its command give."""
    if tolerance is not None and not tolerance > 0:
        raise DisaError(f"--tolerance must be above 0, not {tolerance:g}")
    return QuantizeOptions(
        form=Format(precision),
        images=images,
        tolerance=QuantizeOptions.tolerance if tolerance is None else tolerance,
        token_tolerance=token_tolerance,
        spread_tolerance=spread_tolerance,
        prompts=(*prompts, *(read_prompts(prompt_file) if prompt_file else ())),
        check=check,
    )


def quantize_checkpoint(
    make_plan: MakePlan, output: Path, options: QuantizeOptions, report: Callable[[str], object]
) -> Quantized:
    """Quantise the fp32 plan that `make_plan` writes to the path it is given, then remove that."""
    with scratch_folder(output) as folder:
        full = folder / output.name
        make_plan(full)
        return quantize(full, output, options, report)


def describe(quantized: Quantized, options: QuantizeOptions) -> list[str]:
    """What quantising did, for people."""
    lines = [_describe_graph(graph, options.form) for graph in quantized.graphs]
    if quantized.tokens is not None:
        lines.append(
            f"  tokens lie {quantized.tokens.distance:.3f} standard deviations from those drawn in "
            f"fp32 ({options.token_tolerance:g} allowed) and spread "
            f"{quantized.tokens.spread:+.1%} ({options.spread_tolerance:.1%} allowed)"
        )
    return lines


def _describe_graph(graph: QuantizedGraph, form: Format) -> str:
    chosen, left_out = len(graph.selection.chosen), len(graph.selection.left_out)
    line = f"  {graph.name:<10} {chosen} of {chosen + left_out} products in {form.value}"
    if not graph.measured:
        return line
    line += f", differs from fp32 by {graph.selection.error:.1e}"
    if left_out:
        line += f" ({graph.selection.error_of_all:.1e} with all)"
    return f"{line}, {graph.speedup:.2f} times as fast on this CPU"
