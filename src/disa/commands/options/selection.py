"""The selection of images that disa-run generates."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import click

from ...errors import DisaError
from ...files import read_text, text_lines
from ...runtime.families.conditions.labels import find_class
from ...runtime.families.conditions.prompt import read_prompts
from ...runtime.outputs.selection import MAX_INDEX, Selection, check_indices

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_NUM = 16
MAX_NUM = 10_000_000
MAX_FILE_BYTES = 1 << 30


_OPTIONS = (
    click.option(
        "--num",
        type=click.IntRange(1, MAX_NUM),
        help="Images to generate; by default one for each --class or --prompt, or"
        f" {DEFAULT_NUM} without these.",
    ),
    click.option(
        "--per-class",
        "--per-prompt",
        type=click.IntRange(1, MAX_NUM),
        help="Images of each class or prompt, instead of --num.",
    ),
    click.option(
        "--first-image",
        type=click.IntRange(0, MAX_INDEX - MAX_NUM),
        help="Index of the first image, to generate a part of a longer run.",
    ),
    click.option(
        "--class",
        "classes",
        multiple=True,
        help="Class by number or name; may be repeated. By default all classes in turn.",
    ),
    click.option("--prompt", "prompts", multiple=True, help="Text prompt; may be repeated."),
    click.option(
        "--prompt-file",
        type=click.Path(path_type=Path),
        help="File of prompts: one a line, or .json, .jsonl.",
    ),
    click.option(
        "--rows",
        type=click.Path(path_type=Path),
        help="CSV or .jsonl file with index, class (or prompt) and seed of each image.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, MAX_INDEX),
        default=0,
        show_default=True,
        help="Seed of the noise and of the generation order.",
    ),
)


def selection_options(command: Command) -> Command:
    """Add the options of `SelectionOptions`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Conditions:
    """The conditions that a model accepts.

    Attributes:
        family: the model's family.
        classes: number of classes; None for prompts.
        names: names of the classes.
        check_prompts: returns the prompts in the form that the model accepts; raises DisaError for
            a prompt that it does not accept.
    """

    family: str
    classes: int | None
    names: Sequence[str] | None
    check_prompts: Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class SelectionOptions:
    """The values of the options of the same names."""

    seed: int = 0
    num: int | None = None
    per_class: int | None = None
    first_image: int | None = None
    classes: Sequence[str] = ()
    prompts: Sequence[str] = ()
    prompt_file: Path | None = None
    rows: Path | None = None


def select_images(options: SelectionOptions, conditions: Conditions) -> Selection:
    """The images that the options select.

    Raises:
        DisaError: options exclude each other, a class does not exist, or a file is not usable.
    """
    if conditions.classes is None and options.classes:
        raise DisaError(
            f"a {conditions.family} model takes prompts, not classes: use --prompt or --prompt-file"
        )
    if conditions.classes is not None and (options.prompts or options.prompt_file):
        raise DisaError(f"a {conditions.family} model takes classes, not prompts: use --class")
    if options.rows:
        return _select_rows(options, conditions)
    if options.per_class and options.num:
        raise DisaError("--per-class sets the number of images: leave out --num")
    turn = _turn(options, conditions)
    first = options.first_image or 0
    default = DEFAULT_NUM
    if turn is not None:
        default = len(turn) * (options.per_class or 1)
    count = options.num or default
    if turn is None:
        assert conditions.classes is not None
        # An image must not depend on how a long run is split, so the classes alternate.
        if options.first_image is None and count < conditions.classes:
            return Selection.of_seed(spread(conditions.classes, count), options.seed)
        turn = range(conditions.classes)
    if count > MAX_NUM:
        raise DisaError(f"{count} images are more than {MAX_NUM}: use --first-image and parts")
    return Selection.of_seed(repeat_in_turn(turn, count, first), options.seed, first)


def _turn(options: SelectionOptions, conditions: Conditions) -> Sequence[int | str] | None:
    """The classes or prompts that alternate; None for all classes if none are selected."""
    if conditions.classes is None:
        return conditions.check_prompts(all_prompts(options.prompts, options.prompt_file))
    if options.classes:
        return [find_class(name, conditions.classes, conditions.names) for name in options.classes]
    return range(conditions.classes) if options.per_class else None


def all_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of the command line, then those of the file.

    Raises:
        DisaError: there is no prompt, or the file cannot be read.
    """
    prompts = [*given, *(read_prompts(file) if file else [])]
    if not prompts:
        raise DisaError("there is no prompt: give --prompt TEXT or --prompt-file FILE")
    return prompts


def prompt_metadata(options: SelectionOptions) -> list[dict[str, Any]]:
    """GenEval's metadata of each prompt, in the order of the prompts.

    They are the objects of a .json or .jsonl prompt file; other prompts have only their text.
    """
    metadata: list[dict[str, Any]] = [{"prompt": prompt} for prompt in options.prompts]
    if options.prompt_file:
        file = options.prompt_file
        items: list[Any]
        match file.suffix.lower():
            case ".json":
                items = json.loads(read_text(file, MAX_FILE_BYTES))
            case ".jsonl":
                lines = text_lines(read_text(file, MAX_FILE_BYTES))
                items = [json.loads(line) for line in lines if line.strip()]
            case _:
                items = list(read_prompts(file))
        metadata += [item if isinstance(item, dict) else {"prompt": item} for item in items]
    return metadata


def repeat_in_turn(items: Sequence[T], count: int, first: int = 0) -> list[T]:
    """`count` items in turn, from the item at position `first`; the list repeats at its end."""
    offset = first % len(items)
    return list(islice(cycle(items), offset, offset + count))


def spread(classes: int, count: int) -> list[int]:
    """`count` classes, evenly spread over all classes; `count` is smaller than their number."""
    return [index * classes // count for index in range(count)]


def _select_rows(options: SelectionOptions, conditions: Conditions) -> Selection:
    others = {
        "--num": options.num,
        "--per-class": options.per_class,
        "--first-image": options.first_image,
        "--class": options.classes,
        "--prompt": options.prompts,
        "--prompt-file": options.prompt_file,
    }
    given = [name for name, value in others.items() if value]
    if given:
        raise DisaError(f"--rows selects the images: leave out {' and '.join(given)}")
    assert options.rows
    field = "prompt" if conditions.classes is None else "class"
    indices, texts, seeds = [], [], []
    for number, row in enumerate(_read_rows(options.rows), 1):
        where = f"{options.rows}: row {number}"
        if None in row:
            raise DisaError(
                f"{where} has more values than the header: put text with commas in quotation marks"
            )
        if unknown := row.keys() - {"index", "seed", field}:
            raise DisaError(
                f"{where} has {sorted(map(str, unknown))[0]!r}: give index, {field}, seed"
            )
        if row.get(field) in (None, ""):
            raise DisaError(f"{where} has no {field}")
        # Other values of JSON have a text too, but nobody means it.
        if type(row[field]) is not str and (field == "prompt" or type(row[field]) is not int):
            wanted = "text" if field == "prompt" else "a number or a name"
            raise DisaError(f"the {field} of {where} is not {wanted}: {str(row[field])[:40]!r}")
        indices.append(_whole(row.get("index"), number - 1, f"index of {where}"))
        seeds.append(_whole(row.get("seed"), options.seed, f"seed of {where}"))
        texts.append(str(row[field]))
    if not texts or len(texts) > MAX_NUM:
        raise DisaError(f"{options.rows} must have 1 to {MAX_NUM} rows, not {len(texts)}")
    check_indices(indices)
    different = list(dict.fromkeys(texts))
    checked: Sequence[int | str]
    if conditions.classes is None:
        checked = conditions.check_prompts(different)
    else:
        checked = [find_class(name, conditions.classes, conditions.names) for name in different]
    condition_of = dict(zip(different, checked, strict=True))
    return Selection(indices, [condition_of[text] for text in texts], seeds)


def _read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    text = read_text(path, MAX_FILE_BYTES)
    if path.suffix.lower() != ".jsonl":
        reader = csv.DictReader(io.StringIO(text), strict=True)
        try:
            yield from reader
        except csv.Error as error:
            raise DisaError(f"{path}: line {reader.line_num} is not valid CSV ({error})") from error
        return
    for number, line in enumerate(text_lines(text), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DisaError(f"{path}: line {number} is not valid JSON") from error
            if not isinstance(row, dict):
                raise DisaError(f"{path}: line {number} is not an object")
            yield row


def _whole(value: Any, default: int, what: str) -> int:
    if value in (None, ""):
        return default
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if type(number) is not int or not 0 <= number <= MAX_INDEX:
        raise DisaError(f"the {what} is not a whole number from 0: {str(value)[:40]!r}")
    return number
