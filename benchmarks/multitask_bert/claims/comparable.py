"""Which rows may be put side by side: those whose recipes alone tell them apart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from benchmarks.multitask_bert.claims.verdicts import UntestedError
from benchmarks.multitask_bert.recipes.catalog import all_recipes
from benchmarks.multitask_bert.recipes.recipe import Recipe, RecipeError
from benchmarks.multitask_bert.records.rows import Row, Section
from benchmarks.multitask_bert.records.run import SETTINGS, Json
from benchmarks.multitask_bert.tasks import TASKS

NAMES = ("id", "description", "assumed")  # of a recipe; they decide no outcome
MAX_REASONS = 3


@dataclass(frozen=True)
class Pair:
    """Two rows under the same settings, and under how many settings there are such two."""

    first: Row
    second: Row
    num_settings: int

    @property
    def num_seeds(self) -> int:
        return min(len(self.first.runs), len(self.second.runs))

    @property
    def details(self) -> tuple[str, ...]:
        """Seeds, steps, and that there are other settings."""
        counts = [len(self.first.runs), len(self.second.runs)]
        return (seeds_text(counts), steps_text(self.first, self.second), *_choice(self))


def find_pair(section: Section, first: str, second: str) -> Pair:
    """The two recipes' rows to compare: of those under one setting, the ones with most seeds.

    Raises:
        UntestedError: one of them was not run, or not under the settings of the other.
    """
    rows = [complete_rows(section, id) for id in (first, second)]
    missing = [id for id, found in zip((first, second), rows, strict=True) if not found]
    if missing:
        raise UntestedError(missing=tuple(missing))
    reasons = {(a.index, b.index): list(_differences(a, b)) for a, b in product(*rows)}
    found = [Pair(a, b, 0) for a, b in product(*rows) if not reasons[a.index, b.index]]
    if not found:
        fewest = min(reasons.values(), key=len)
        more = f" and {len(fewest) - MAX_REASONS} more" if len(fewest) > MAX_REASONS else ""
        raise UntestedError(
            f"`{first}` and `{second}` were run under different settings: "
            f"{', '.join(fewest[:MAX_REASONS])}{more}"
        )
    best = max(found, key=_rank)
    return Pair(best.first, best.second, len(found))


def find_row(section: Section, id: str) -> tuple[Row, int]:
    """The recipe's row with most seeds, and how many rows there are.

    Raises:
        UntestedError: it was not run.
    """
    rows = complete_rows(section, id)
    if not rows:
        raise UntestedError(missing=(id,))
    return max(rows, key=lambda row: (len(row.runs), row.runs[0].step)), len(rows)


def complete_rows(section: Section, id: str) -> list[Row]:
    """Unfinished runs stopped anywhere, so their numbers compare with nobody's."""
    return [row for row in section.rows if row.recipe_id == id and row.runs[0].end]


def seeds_text(counts: list[int]) -> str:
    same = len(set(counts)) == 1
    shown = f"{counts[0]}" if same else " and ".join(map(str, counts))
    return f"{shown} seed{'' if counts == [1] * len(counts) else 's'}{' each' * (len(counts) > 1)}"


def steps_text(*rows: Row) -> str:
    steps = sorted({run.step for row in rows for run in row.runs})
    shown = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    short = any(is_cut(row) or row.runs[0].settings["scale"] != 1 for row in rows)
    return f"{shown} steps{', fewer than the recipe has' if short else ''}"


def is_cut(row: Row) -> bool:
    """Tells whether the limit of steps ended the row's runs."""
    limit = row.runs[0].settings["max_steps"]
    return isinstance(limit, int) and any(run.step >= limit for run in row.runs)


def _differences(a: Row, b: Row) -> Iterator[str]:
    """Lists what two rows differ in, and should not; and what they should differ in, and do not."""
    for name in SETTINGS:
        values = [row.runs[0].settings[name] for row in (a, b)]
        if values[0] != values[1]:
            yield f"{name} {values[0]} and {values[1]}"
    stated = [_stated(row.recipe_id) for row in (a, b)]
    done = [flat_fields(complete_recipe(row.runs[0].recipe)) for row in (a, b)]
    for path in sorted({path for each in (*stated, *done) for path in each}):
        wanted = [each.get(path) for each in stated]
        got = [each.get(path) for each in done]
        if wanted[0] == wanted[1] and got[0] != got[1]:
            yield f"{path} {got[0]} and {got[1]}"
        elif wanted[0] != wanted[1] and not (
            got == wanted
            or _is_scaled(got, wanted)
            or _is_replaced(path, got, wanted, list(zip(stated, done, strict=True)))
            or _is_common(path, got, done)
        ):
            yield f"{path} {got[0]} and {got[1]} (recipes: {wanted[0]} and {wanted[1]})"
    if is_cut(a) or is_cut(b):
        epochs = [{k: v for k, v in each.items() if k.endswith(".epochs")} for each in stated]
        if epochs[0] != epochs[1] or any(map(_has_schedule, (a, b))):
            yield "max_steps ended a run before its schedule did, where --scale would shorten it"


def _is_scaled(got: list[str | None], wanted: list[str | None]) -> bool:
    """Tells whether one factor made both rows' numbers of those that the recipes have."""
    values = [json.loads(text or "null") for text in (*got, *wanted)]
    if not all(type(value) in (int, float) and value for value in values):
        return False
    return math.isclose(values[0] / values[2], values[1] / values[3], rel_tol=1e-9)


def _is_replaced(
    path: str,
    got: list[str | None],
    wanted: list[str | None],
    rows: list[tuple[dict[str, str], dict[str, str]]],
) -> bool:
    """Tells whether one of two words gave way to a third, wherever both rows had it."""
    if all(now != before for now, before in zip(got, wanted, strict=True)):
        return False
    became: dict[str, set[str | None]] = {}
    for stated, done in rows:
        for name, before in stated.items():
            if _field(name) == _field(path):
                became.setdefault(before, set()).add(done.get(name))
    words = all(text is not None and text.startswith('"') for text in (*got, *wanted))
    return words and got[0] != got[1] and all(len(each) == 1 for each in became.values())


def _is_common(path: str, got: list[str | None], done: list[dict[str, str]]) -> bool:
    """Tells whether what one row alone has, a stage or a task, is set as elsewhere in the other."""
    if None not in got:
        return False
    other = done[got.index(None)]
    values = [value for name, value in other.items() if _field(name) == _field(path)]
    return (got[0] or got[1]) in values


def _field(path: str) -> str:
    """A path without the number of its stage and the name of its task."""
    parts = path.split(".")
    return ".".join(part for part in parts if not part.isdigit() and part not in TASKS)


def _has_schedule(row: Row) -> bool:
    """Tells whether later epochs of a row's recipe are of another kind than the first."""
    stages = row.runs[0].recipe.get("stages") or []
    return len(stages) > 1 or any(
        (stage.get("sampling") or {}).get("name") == "annealed" for stage in stages
    )


@cache
def _stated(id: str) -> dict[str, str]:
    """The fields of a recipe as this version has it."""
    return flat_fields(all_recipes()[id].to_dict())


def complete_recipe(recipe: Json) -> Json:
    """The recipe of a run with the fields that an older version did not write."""
    try:
        return Recipe.from_dict(recipe).to_dict()
    except RecipeError:
        return recipe


def flat_fields(recipe: Json) -> dict[str, str]:
    """Each field's path and its value as JSON; the stages by their number."""
    found: dict[str, str] = {}

    def visit(path: str, value: object) -> None:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            for key, each in value.items():
                visit(f"{path}.{key}" if path else str(key), each)
        else:
            found[path] = json.dumps(value)

    visit("", {key: value for key, value in recipe.items() if key not in NAMES})
    return found


def _rank(pair: Pair) -> tuple[int, ...]:
    """Most seeds first; of equal ones what is not constant, and what trained longest."""
    runs = [*pair.first.runs, *pair.second.runs]
    num_constant = sum(len(run.degenerate) for run in runs)
    return (pair.num_seeds, len(runs), -num_constant, min(run.step for run in runs))


def _choice(pair: Pair) -> tuple[str, ...]:
    if pair.num_settings == 1:
        return ()
    return (f"the most seeds of {pair.num_settings} settings that both were run under",)
