"""A mutation run: does a test fail when an operator, a constant or a condition is changed?

    python -m tests.mutants --number 200 --seed 0

Mutants are a random sample, equal parts of each room in `ROOMS`, made in a copy of the tree. Each
is tried by the test file that mirrors its module, then by the tests beside it, by all others of the
room and by those in `ALSO`, until one fails. mutmut 3 does not see a package whose sub-packages lie
elsewhere (`package-dir`), and neither it nor cosmic-ray takes a sample, without which a run takes
days. Torch and ONNX Runtime are imported once, and each mutant is tried in a fork. Test files are
run without a mutant when they are first needed: that exports the golden plans into `.cache`, and
measures how long the tests take. With these plans the recorded runs of the four families take a
second or two, and a killed mutant a few seconds. A mutant that survives takes as long as the room's
tests, a minute in `runtime/families`. The order is random, so what an interrupted run has tried is
a sample too, and `--skip` continues it.

Survivors that were read and left, by kind:

- limits that no file or request comes near: `MAX_BYTES`, `_MAX_...`, `LARGEST`, `_CHUNK`, `CHUNK`.
  Tests replace them by small ones, and reach those;
- defaults that every caller overrides: `Member.cohort` and `column`, `MaskedSample.order` and
  `cached`;
- what means the same: the second in which a zip file's time begins (it counts in twos), the
  checksum of a member before its data is written (it is patched after that), a scale of exactly 1
  in the key of FlowAR's step plans, 20 digits instead of 19 in an ONNX file (no file is so long),
  the size to which a partial plan is cut (what is left is overwritten), and `position + size >
  len(directory)` in the archive, where equality cannot be because a member has a name;
- what cannot be: pixels without a size (`StoredImage.pixels`, `or 0`).

What is mutated: comparisons, arithmetic, `and`/`or`, `not`, whole numbers, True and False, and the
conditions of conditional expressions. Not annotations, decorators, defaults of `metadata`, texts.
"""

import argparse
import ast
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("exporter", "runtime", "engines", "calibration", "server", "src")
ROOMS = ("runtime/sampling", "runtime/families", "engines/plan", "runtime/outputs")
LIBRARIES = ("numpy", "torch", "onnx", "onnxruntime", "onnxscript", "hypothesis", "PIL.Image")
LIBRARIES += ("pyarrow.parquet", "webdataset")
SLOW = ("test_remote.py", "test_adaptive.py", "test_manifest_fuzz.py")
"""Test files of minutes, or that export a plan with each mutant: they are run for the modules that
they mirror only."""
ALSO = {"runtime/families": ("tests/runtime/test_generation.py",)}
"""Quick tests elsewhere of what is in a room: images that join and leave, in all families."""
PATIENCE = 5.0
"""A mutant is killed whose tests take so many times what they take as they are: it never ends."""
LEAST_SECONDS = 60.0
"""Time beside that of the tests: what they import is imported with each mutant."""
FIRST_SECONDS = 1800.0
"""Time for the tests as they are, which export plans."""
SAID, TIMES = "said.txt", "times.xml"
"""What pytest writes: its output, and how long each test took."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}


@dataclass(frozen=True)
class Mutant:
    """A change of one expression of a file."""

    path: Path
    line: int
    old: str
    new: str
    text: str
    """The whole file with the change."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.old}  ->  {self.new}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All mutants of a file."""
    source = (ROOT / path).read_text(encoding="utf-8")
    lines = source.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:index])) for index in range(len(lines) + 1)]
    for node in _expressions(ast.parse(source)):
        for changed in _changes(node):
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            data = source.encode()
            new = ast.unparse(changed)
            text = (data[:begin] + f"({new})".encode() + data[end:]).decode()
            yield Mutant(path, node.lineno, ast.unparse(node), new, text)


def _expressions(tree: ast.AST) -> Iterator[ast.expr]:
    """The expressions that are worth a mutant."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.keyword) and child.arg == "metadata":
                continue
            if isinstance(child, ast.expr):
                yield child
            if isinstance(child, ast.AST) and not _is_negative(child):
                yield from _expressions(child)


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(left, [operator], right) if type(operator) in COMPARISONS:
            yield ast.Compare(left, [COMPARISONS[type(operator)]()], right)
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            if not any(isinstance(part, ast.Constant | ast.JoinedStr) and _is_text(part)
                       for part in (left, right)):  # fmt: skip
                yield ast.BinOp(left, OPERATORS[type(operator)](), right)
        case ast.BoolOp(operator, values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield ast.BoolOp(other, values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.UnaryOp(ast.USub(), ast.Constant(int(value))):
            # Not -2 for -1, which mean the same in a reshape.
            yield ast.Constant(1 - value)
        case ast.IfExp(test, body, otherwise):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, otherwise)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)


def _is_negative(node: ast.AST) -> bool:
    match node:
        case ast.UnaryOp(ast.USub(), ast.Constant(int())):
            return True
    return False


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def sample(number: int, seed: int, rooms: Sequence[str]) -> list[Mutant]:
    """So many mutants, the same share of each room."""
    chance, chosen = random.Random(seed), []
    for room in rooms:
        paths = sorted((ROOT / room).rglob("*.py"))
        found = [m for path in paths for m in mutants_of(path.relative_to(ROOT))]
        chosen += chance.sample(found, min(len(found), number // len(rooms)))
    return chosen


def mutants_at(places: Sequence[str]) -> list[Mutant]:
    """All mutants of some lines, such as those that survived before, or of whole files."""
    return [
        mutant
        for path, _, line in (place.partition(":") for place in places)
        for mutant in mutants_of(Path(path))
        if not line or mutant.line == int(line)
    ]


def tests_of(path: Path, tree: Path, room: Path) -> list[list[str]]:
    """What is run for a module, one after the other until something fails."""
    folder = Path("tests") / path.parent
    while not (tree / folder).is_dir():
        folder = folder.parent
    mirror = folder / f"test_{path.name}"
    stages: list[list[str]] = [[str(mirror)]] if (tree / mirror).exists() else []
    for place in dict.fromkeys((folder, Path("tests") / room)):
        tried = {each for stage in stages for each in stage}
        found = [
            str(each.relative_to(tree))
            for each in sorted((tree / place).rglob("test_*.py"))
            if each.name not in SLOW
        ]
        stages.append([each for each in found if each not in tried])
    stages.append(list(ALSO.get(str(room), ())))
    return [stage for stage in stages if stage]


def copy_tree(target: Path) -> None:
    """A copy of the tree that can be changed, importable as `disa`."""
    for name in (*SOURCES, "tests", "benchmarks"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("demo", "pyproject.toml", ".cache"):
        if (ROOT / name).exists():
            (target / name).symlink_to(ROOT / name)
    package = target / ".pkg" / "disa"
    package.mkdir(parents=True)
    for source in [*(target / "src" / "disa").iterdir(), *(target / n for n in SOURCES[:-1])]:
        (package / source.name).symlink_to(source)


class Rehearsals:
    """How long the tests take as they are: each file is measured when it is first needed.

    Args:
        tree: the copy of the tree, without a mutant in it while something is measured.
    """

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._seconds: dict[str, float] = {}

    def limit(self, tests: Sequence[str]) -> float:
        """The seconds after which these tests never end.

        Raises:
            SystemExit: one of them fails without a mutant.
        """
        unknown, plans = [each for each in tests if each not in self._seconds], -1
        # A second time if plans were exported, which no mutant has to wait for.
        while unknown and plans != (plans := len(list((self._tree / ".cache").rglob("*.plan")))):
            if not passes(unknown, self._tree, FIRST_SECONDS):
                sys.exit((self._tree / SAID).read_text() + "tests fail without a mutant")
            self._seconds.update(dict.fromkeys(unknown, 0.0))
            for case in ElementTree.parse(self._tree / TIMES).iter("testcase"):
                self._seconds[case.attrib["file"]] += float(case.attrib["time"])
        return LEAST_SECONDS + PATIENCE * sum(self._seconds[each] for each in tests)


def survives(mutant: Mutant, tree: Path, room: str, rehearsals: Rehearsals) -> bool:
    """Whether no test fails."""
    path = tree / mutant.path
    original = path.read_text(encoding="utf-8")
    for tests in tests_of(mutant.path, tree, Path(room)):
        seconds = rehearsals.limit(tests)
        path.write_text(mutant.text, encoding="utf-8")
        try:
            if not passes(tests, tree, seconds):
                return False
        finally:
            path.write_text(original, encoding="utf-8")
    return True


def passes(tests: Sequence[str], tree: Path, seconds: float) -> bool:
    """Whether all of these tests pass, in a fork of this process."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _run(tests, tree)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run(tests: Sequence[str], tree: Path) -> None:
    """Run tests and end this process with their exit code."""
    code = 1
    try:
        said = os.open(tree / SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        os.chdir(tree)
        import pytest

        # Of the two formats, xunit1 is the one that names a test's file.
        options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
        code = int(pytest.main([*options, f"--junitxml={tree / TIMES}", *tests]))
    finally:
        os._exit(code)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Try how many mutants the tests find.")
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", default=",".join(ROOMS))
    parser.add_argument("--at", help="all mutants of these instead: FILE or FILE:LINE,...")
    parser.add_argument("--skip", type=int, default=0, help="so many were tried before")
    arguments = parser.parse_args()
    rooms = arguments.rooms.split(",")
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        ours = [str(tree / ".pkg"), str(tree)]
        sys.path[:] = ours + [p for p in sys.path if p not in ("", str(ROOT), str(ROOT / ".pkg"))]
        os.environ["PYTHONPATH"] = os.pathsep.join(ours)
        for library in LIBRARIES:
            importlib.import_module(library)
        rehearsals = Rehearsals(tree)
        left: list[Mutant] = []
        chosen = sample(arguments.number, arguments.seed, rooms)
        if arguments.at:
            chosen = mutants_at(arguments.at.split(","))
        chosen = chosen[arguments.skip :]
        for index, mutant in enumerate(chosen, 1):
            room = next(room for room in rooms if mutant.path.is_relative_to(room))
            alive = survives(mutant, tree, room, rehearsals)
            left += [mutant] if alive else []
            print(f"{index}/{len(chosen)} {'SURVIVED' if alive else 'killed'} {mutant}", flush=True)
    killed = len(chosen) - len(left)
    print(f"{killed} of {len(chosen)} mutants killed, {killed / len(chosen):.0%}; survivors:")
    print("\n".join(map(str, left)))


if __name__ == "__main__":
    main()
