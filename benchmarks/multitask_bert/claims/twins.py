"""Rows that one setting tells apart, so that their difference is that setting's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.multitask_bert.claims.comparable import complete_recipe, flat_fields
from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.records.rows import Row
from benchmarks.multitask_bert.records.run import SETTINGS
from benchmarks.multitask_bert.tasks import TASKS

Fields: TypeAlias = dict[str, tuple[tuple[str, str], ...]]  # setting -> its paths with their values

METHOD = "method"
LOGGED = "monitored"  # changes no update
_PLAIN = {"loss-sum", "none"}
_OPTIONS = {option for method in METHODS.values() for option in method.options}


@dataclass(frozen=True)
class Contrast:
    """Two rows under the same settings, but for one."""

    first: Row
    second: Row  # the one to compare with: the loss sum, where there is one
    setting: str

    @property
    def title(self) -> str:
        """Name the two by their methods where these differ, by their recipes elsewhere.

        A recipe is named in any case, because several may have the same methods.
        """
        if self.setting == METHOD:
            return f"{self.first.method} less {self.second.method} ({self.first.name})"
        return f"{self.first.name} less {self.second.name} ({self.setting})"


def contrasts(rows: Sequence[Row]) -> list[Contrast]:
    """Find the rows that differ in one setting; the first of those that have it is compared with.

    Methods are compared with the loss sum. Only complete runs under the same encoder, limit of
    steps, scale and precision are.
    """
    complete = [row for row in rows if row.runs[0].end]
    found = []
    for setting, cluster in _clusters(complete, strict=True):
        reference = _reference(cluster) if setting == METHOD else cluster[0]
        others = [row for row in cluster if row is not reference]
        found += [Contrast(row, reference, setting) for row in others]
    order = {id(row): index for index, row in enumerate(rows)}
    return sorted(found, key=lambda c: (c.setting != METHOD, order[id(c.first)]))


def near_twins(rows: Sequence[Row]) -> Iterator[str]:
    """Tell of rows that would differ in their method alone, had they been run alike."""
    complete = [row for row in rows if row.runs[0].end]
    paired = {id(row) for each in contrasts(rows) for row in (each.first, each.second)}
    for setting, cluster in _clusters(complete, strict=False):
        if setting != METHOD:
            continue
        reference = _reference(cluster)
        for row in cluster:
            if id(row) in paired or row is reference:
                continue
            settings = [each.runs[0].settings for each in (row, reference)]
            unlike = [
                f"{name} {settings[0][name]} and {settings[1][name]}"
                for name in SETTINGS
                if settings[0][name] != settings[1][name]
            ]
            yield f"`{row.name}` and `{reference.name}`: {', '.join(unlike)}"


def twins_together(rows: Sequence[Row]) -> list[list[Row]]:
    """Put rows that differ in their method alone into one list, in the order of the first."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(_rest(fields_of(row), METHOD), []).append(row)
    return list(groups.values())


def is_plain(row: Row) -> bool:
    """Tells whether a row's runs sum their losses in every stage that trains."""
    return set(row.methods) <= _PLAIN


def fields_of(row: Row) -> Fields:
    """Give what decides the outcome of a row's recipe, by the setting that it belongs to."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path, value in flat_fields(complete_recipe(row.runs[0].recipe)).items():
        parts = [part for part in path.split(".") if not part.isdigit() and part not in TASKS]
        name = parts[1] if parts[0] == "stages" and len(parts) > 1 else parts[0]
        if name != LOGGED:
            found.setdefault(METHOD if name in _OPTIONS else name, []).append((path, value))
    return {name: tuple(sorted(each)) for name, each in found.items()}


def _reference(cluster: Sequence[Row]) -> Row:
    return next((row for row in cluster if is_plain(row)), cluster[0])


def _clusters(rows: Sequence[Row], *, strict: bool) -> Iterator[tuple[str, list[Row]]]:
    """Give each setting with rows that have it in several ways, and everything else alike."""
    fields = [fields_of(row) for row in rows]
    for setting in dict.fromkeys(name for each in fields for name in each):
        groups: dict[object, dict[object, Row]] = {}
        for row, each in zip(rows, fields, strict=True):
            settings = sorted(row.runs[0].settings.items()) if strict else ()
            group = groups.setdefault((_rest(each, setting), str(settings)), {})
            value = each.get(setting) if strict else (each.get(setting), row.index)
            # Of two that differ in what they log, the one with more seeds.
            if value not in group or len(row.runs) > len(group[value].runs):
                group[value] = row
        for group in groups.values():
            if len({fields[rows.index(row)].get(setting) for row in group.values()}) > 1:
                yield setting, sorted(group.values(), key=rows.index)


def _rest(fields: Fields, setting: str) -> tuple[object, ...]:
    return tuple(sorted((name, each) for name, each in fields.items() if name != setting))
