"""The command line: `run`, `report`, `analyze`, `predict`, `evaluate`, `list` and `fetch`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.multitask_bert.cli.arguments import (
    FAILED,
    INTERRUPTED,
    REFUSED,
    is_first_process,
    make_parser,
    num_processes,
    one_line,
)
from benchmarks.multitask_bert.cli.run_arguments import FIRST_SEED as FIRST_SEED

MAX_LINES = 8  # of one kind, of what `analyze` prints


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _answer(given) if num_processes() == 1 else _answer_together(given)
    except KeyboardInterrupt:
        return INTERRUPTED


def _answer(given: list[str]) -> int:
    options = make_parser().parse_args(given)
    try:
        status = _COMMANDS[options.command](options, given)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has had enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        _complain(error)
        return REFUSED


def _answer_together(given: list[str]) -> int:
    """Answers as one of several processes.

    All end together, because torchrun ends the others as soon as one has failed, and the first has
    to say why.
    """
    from benchmarks.multitask_bert.training.processes import CrashError, LostError, joined

    with joined() as processes:
        try:
            status = _answer(given)
        except SystemExit as end:  # argparse's way out
            status = end.code if isinstance(end.code, int) else REFUSED
        except CrashError as error:
            _complain(error)
            status = FAILED
        except LostError as error:
            _complain(error)
            return FAILED
        with suppress(LostError):
            processes.meet()
        return status


def _complain(error: Exception) -> None:
    if is_first_process():
        print(f"error: {one_line(error)}", file=sys.stderr)


def _list(options: argparse.Namespace) -> int:
    from benchmarks.multitask_bert.recipes.catalog import find_all
    from benchmarks.multitask_bert.recipes.fields import FIELDS

    if options.fields:
        for field in FIELDS:
            print(f"--set {field.example}\n    {field.meaning}")
        return 0
    recipes = find_all(options.recipes or ["*"])
    if options.json:
        if len(recipes) != 1:
            raise ValueError(f"list --json: must name one recipe, got {len(recipes)}; name one")
        print(json.dumps(recipes[0].to_dict(), indent=2, ensure_ascii=False))
        return 0
    width = max(len(recipe.id) for recipe in recipes)
    for recipe in recipes:
        print(f"{recipe.id:{width}}  {recipe.description}")
        if options.long:
            print(f"{'':{width}}  assumed: {', '.join(recipe.assumed)}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from benchmarks.multitask_bert.report.build import report

    made = report(options.directories, options.out)
    print(made.markdown if options.print else made.summary)
    print(f"Pages: {made.page} and {made.text_page}")
    return 0


def _analyze(options: argparse.Namespace) -> int:
    from benchmarks.multitask_bert.errors.analysis import analyze_all
    from benchmarks.multitask_bert.report.side_by_side import compare_examples

    found = analyze_all(options.runs, options.data, options.out)
    beside = compare_examples(options.runs, options.data, options.out)
    if options.print:
        print("\n".join([*(each.markdown for each in found), beside.markdown]))
        return 0
    for each in found[:MAX_LINES]:
        print(each.summary)
    if len(found) > MAX_LINES:
        print(f"and {len(found) - MAX_LINES} more, each with a page of its own")
    for line in beside.summary[:MAX_LINES]:
        print(line)
    pages = [each.page for each in found]
    shown = str(pages[0]) if len(pages) == 1 else f"{pages[0]} and {len(pages) - 1} like it"
    print(f"Pages: {shown}{f'; {beside.page}' if beside.page else ''}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from benchmarks.multitask_bert.training.kept_model import kept_models
    from benchmarks.multitask_bert.training.predictions import write_predictions

    splits = (options.split,) if options.split else ("dev", "test")
    absent: dict[Path, None] = {}
    for kept in kept_models(options.run):
        out = kept.folder / "hand-in"
        if options.out is not None:
            out = options.out / kept.folder.relative_to(options.run)
        written, lacking = write_predictions(kept, options.data, out, splits, options.tasks)
        absent |= dict.fromkeys(lacking)
        for path in written:
            print(path)
    _name_absent(absent)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from benchmarks.multitask_bert.training.kept_model import kept_models
    from benchmarks.multitask_bert.training.labelled import score

    absent: dict[Path, None] = {}
    for kept in kept_models(options.run):
        scores, lacking = score(kept, options.data, options.split, options.tasks)
        absent |= dict.fromkeys(lacking)
        print(f"{kept.folder}, {options.split} rows of {options.data or kept.data}:")
        for each in scores:
            print(f"  {each}")
    _name_absent(absent)
    return 0


def _name_absent(paths: Iterable[Path]) -> None:
    for path in paths:
        print(f"left out: {path} is not there", file=sys.stderr)


def _fetch(options: argparse.Namespace) -> int:
    from benchmarks.multitask_bert.data.fetch import describe, fetch

    for path in fetch(options.directory):
        print(describe(path))
    return 0


def _run(options: argparse.Namespace, given: list[str]) -> int:
    from benchmarks.multitask_bert.cli.launch import launch

    return launch(options, given)


def _in_the_first(command: Callable[[argparse.Namespace], int]) -> Callable[..., int]:
    """A command that one process does for all."""
    return lambda options, given: command(options) if is_first_process() else 0


_COMMANDS: Mapping[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "run": _run,
    "report": _in_the_first(_report),
    "analyze": _in_the_first(_analyze),
    "predict": _in_the_first(_predict),
    "evaluate": _in_the_first(_evaluate),
    "list": _in_the_first(_list),
    "fetch": _in_the_first(_fetch),
}


if __name__ == "__main__":
    sys.exit(main())
