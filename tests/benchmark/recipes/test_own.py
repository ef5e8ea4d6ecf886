"""Recipes from files against those they were written from, and examples of fields against both."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from benchmarks.multitask_bert.recipes.catalog import find
from benchmarks.multitask_bert.recipes.fields import FIELDS, suggest
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.recipes.own import read_recipe
from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, RecipeError, Sampling, Stage
from benchmarks.multitask_bert.training.plan import check_runnable

PCGRAD = find("smet-walker/v2-dropout-0.3")


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.example)
def test_the_example_of_a_field_changes_a_recipe(field):
    recipe, deviations = override(PCGRAD, field.example.split(" --set "))
    check_runnable(recipe)
    assert recipe != PCGRAD
    assert len(deviations) == len(field.names)


def test_every_field_has_an_example():
    shown = {setting.partition("=")[0] for f in FIELDS for setting in f.example.split(" --set ")}
    words = {word for name in shown for word in name.split(".")}
    kinds = (Recipe, Stage, Sampling, Head)
    known = {field.name for kind in kinds for field in fields(kind)}
    assert known - words == {"id", "description", "assumed", "stages"} - words
    for name in known - {"id", "description", "assumed", "stages", "name", "epoch"}:
        assert suggest(name.upper()) != "", name


def write(path, **changes):
    path.write_text(json.dumps({**PCGRAD.to_dict(), "id": "mine/first", **changes}))
    return path


def test_a_file_holds_a_recipe(tmp_path):
    found = read_recipe(write(tmp_path / "mine.json", pooling="mean"))
    assert found == override(PCGRAD, ["pooling=mean"])[0].__class__.from_dict(
        {**PCGRAD.to_dict(), "id": "mine/first", "pooling": "mean"}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"poling": "mean"}, r"no field poling; did you mean pooling\?"),
        ({"stages": [{"learning": 1}]}, r"no field stages\.0\.learning; "),
        ({"heads": {"sst": {"layer": []}}}, r"no field heads\.sst\.layer; did you mean layers\?"),
        ({"stages": [3]}, r"stages\.0\. must be an object, got a int"),
        ({"stages": 3}, "not of a recipe's form"),
        ({"pooling": "best"}, "pooling must be one of pooler, cls, mean, got 'best'"),
        ({"head_dropout": "much"}, "recipe mine/first: not of this version's form"),
        ({"id": "../up"}, r"id must be two names such as mine/first, got '\.\./up'"),
        ({"id": PCGRAD.id}, "id must be a new one"),
    ],
)
def test_a_file_that_holds_none_is_refused(tmp_path, changes, words):
    path = write(tmp_path / "mine.json", **changes)
    with pytest.raises(RecipeError, match=words) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_without_a_field_that_is_needed(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"id": "mine/first", "stages": []}))
    with pytest.raises(RecipeError, match="description must be there, found id, stages"):
        read_recipe(path)
    path.write_text("{")
    with pytest.raises(RecipeError, match="must be JSON"):
        read_recipe(path)
