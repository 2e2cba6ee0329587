"""Quantisation in disa-export; imported on demand because it needs the exporter's packages."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..calibration.quantization.options import QuantizeOptions
from ..calibration.quantization.qdq import Format
from ..calibration.quantization.quantize import quantize
from ..calibration.quantization.result import Quantized, QuantizedGraph
from ..errors import DisaError
from ..runtime.families.conditions.prompt import read_prompts
from ..scratch import scratch_folder

MakePlan = Callable[[Path], object]
"""Writes an fp32 plan to a path."""


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
    """The options of the quantisation, from the options of the command.

    Raises:
        DisaError: the tolerance is not above 0, or the prompt file cannot be read.
    """
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
    """Make a temporary fp32 plan and quantise it.

    Args:
        make_plan: writes the fp32 plan.
        output: the 8-bit plan.
        report: called with the name of each stage.
    """
    with scratch_folder(output) as folder:
        fp32_plan = folder / output.name
        make_plan(fp32_plan)
        return quantize(fp32_plan, output, options, report)


def describe(quantized: Quantized, options: QuantizeOptions) -> list[str]:
    """The result as lines for the terminal."""
    lines = [_describe_graph(graph, options.form) for graph in quantized.graphs]
    for tokens, how in (
        (quantized.tokens, ""),
        (quantized.refreshed, f" with --refresh {quantized.refresh}"),
    ):
        if tokens is not None:
            lines.append(
                f"  tokens{how} lie {tokens.distance:.3f} standard deviations from those sampled "
                f"in fp32 ({options.token_tolerance:g} allowed) and spread "
                f"{tokens.spread:+.1%} ({options.spread_tolerance:.1%} allowed)"
            )
    return lines


def _describe_graph(graph: QuantizedGraph, form: Format) -> str:
    chosen, left_out = len(graph.selection.chosen), len(graph.selection.left_out)
    line = f"  {graph.name:<10} {chosen} of {chosen + left_out} matmuls in {form.value}"
    if not graph.measured:
        return line
    line += f", differs from fp32 by {graph.selection.error:.1e}"
    if left_out:
        line += f" ({graph.selection.error_of_all:.1e} with all)"
    return f"{line}, {graph.speedup:.2f} times as fast on this CPU"
