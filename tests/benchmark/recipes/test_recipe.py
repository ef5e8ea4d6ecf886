"""Recipes against their own JSON form, and every `--set` against the field that it names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.multitask_bert.recipes.catalog import all_recipes, find
from benchmarks.multitask_bert.recipes.overrides import override
from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, RecipeError, Sampling, Stage
from benchmarks.multitask_bert.training.plan import check_runnable

GENERAL = find("smet-walker/general-linear-loss-sum")


@pytest.mark.parametrize("id", all_recipes())
def test_a_recipe_survives_json(id):
    recipe = find(id)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("setting", "read", "expected"),
    [
        ("pooling=mean", lambda r: r.pooling, "mean"),
        ("head_dropout=0.1", lambda r: r.head_dropout, 0.1),
        ("weight_decay=1", lambda r: r.weight_decay, 1.0),
        ("grad_clip=1.0", lambda r: r.grad_clip, 1.0),
        ("lr=1e-4", lambda r: r.stages[0].lr, 1e-4),
        ("stages.0.lr=1e-4", lambda r: r.stages[0].lr, 1e-4),
        ("epochs=2", lambda r: r.stages[0].epochs, 2),
        ("method=pcgrad", lambda r: r.stages[0].method, "pcgrad"),
        ("batch_size=16", lambda r: r.stages[0].batch_size, {"sst": 16, "quora": 16, "sts": 16}),
        ("batch_size.sts=1", lambda r: r.stages[0].batch_size, {"sst": 8, "quora": 8, "sts": 1}),
        ("pairs=joint-sep", lambda r: r.pairs, {"quora": "joint-sep", "sts": "joint-sep"}),
        ("pairs.sts=joint-sep", lambda r: r.pairs, {"quora": "joint-raw-ids", "sts": "joint-sep"}),
        ("sampling.epoch=largest", lambda r: r.stages[0].sampling.epoch, "largest"),
        ('heads.sst.layers=["linear:out"]', lambda r: r.heads["sst"].layers, ("linear:out",)),
    ],
)
def test_a_setting_changes_its_field_alone(setting, read, expected):
    changed, deviations = override(GENERAL, [setting])
    assert read(changed) == expected
    assert read(GENERAL) != expected
    before, after = GENERAL.to_dict(), changed.to_dict()
    field = setting.split("=")[0].split(".")[0]
    field = field if field in before else "stages"
    assert {key for key in before if before[key] != after[key]} == {field}
    assert len(deviations) == 1
    assert setting.split("=")[0] in deviations[0]


def test_a_setting_that_is_the_recipes_own_is_no_deviation():
    assert override(GENERAL, ["pooling=pooler", "lr=1e-5"]) == (GENERAL, [])


def test_a_stage_field_sets_every_stage():
    two = replace(GENERAL, stages=(*GENERAL.stages, replace(GENERAL.stages[0], lr=1e-3)))
    changed, deviations = override(two, ["lr=0.5"])
    assert [stage.lr for stage in changed.stages] == [0.5, 0.5]
    assert deviations == ["lr set to 0.5 (recipe: 1e-05, 0.001)"]


def test_a_factor_keeps_the_proportions_of_the_stages():
    two = replace(GENERAL, stages=(*GENERAL.stages, replace(GENERAL.stages[0], lr=1e-3)))
    changed, deviations = override(two, ["lr*=10", "epochs*=2"])
    assert [stage.lr for stage in changed.stages] == [1e-4, 1e-2]
    assert [stage.epochs for stage in changed.stages] == [20, 20]
    assert deviations == [
        "lr set to 0.0001, 0.01 (recipe: 1e-05, 0.001)",
        "epochs set to 20 (recipe: 10)",
    ]


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("poling=mean", "did you mean pooling"),
        ("learning_rate=1e-4", "did you mean lr? see `list --fields`"),
        ("batchsize=16", "did you mean batch_size?"),
        ("stages.0.learning-rate=1e-4", "did you mean lr?"),
        ("seed=5", "did you mean the option --seed?"),
        ("xyzzy=5", "losses, stages, pooling"),
        ("dev_batches.cfimdb=5", "dev_batches must be of tasks of the recipe, got 'cfimdb'"),
        ("min_label.sts=high", "must be of type float"),
        ("pooling", "no '='"),
        ("pooling=median", "'median'"),
        ("head_dropout=1.5", "1.5"),
        ("head_dropout=much", "'much'"),
        ("epochs=2.5", "int"),
        ("stages.1.lr=1", "stages.1"),
        ("lr.sst=1", "lr.sst"),
        ("lr=-1", "-1"),
        ("pooling*=2", "'pooler' times 2"),
        ("batch_size*=2", "must multiply a number"),
        ("lr*=much", "'much'"),
        ("lr*=0", "lr must be above 0"),
        ("batch_size=0", "0"),
        ("heads=linear", "heads"),
        ("id=mine", "id"),
        ("sampling.num_batches=5", "num_batches"),
        ("losses.sst=hinge", "'hinge'"),
        ("pairs.sst=joint-sep", "pairs.sst"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(setting, found):
    with pytest.raises(RecipeError) as refusal:
        override(GENERAL, [setting])
    message = str(refusal.value)
    assert found in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "options", "deviation"),
    [
        (["method=cagrad", "method_options.c=0.5"], {"c": 0.5}, "c set to 0.5 (recipe: 0.4)"),
        (["method_options.c=1", "method=cagrad"], {"c": 1.0}, "c set to 1.0 (recipe: 0.4)"),
        (["method=cagrad", "stages.0.method_options.c*=2"], {"c": 0.8}, "c set to 0.8"),
        (["method=cagrad", "method_options.c=0.4"], {}, None),
        (["method=pcgrad", "method_options.every=4"], {"every": 4}, "every set to 4 (recipe: 1)"),
        (["method=nash-mtl", "method_options.max_norm=null"], {"max_norm": None}, "None"),
        (
            ["method=upgrad", 'method_options.preference={"sst": 2, "quora": 1, "sts": 1}'],
            {"preference": {"sst": 2, "quora": 1, "sts": 1}},
            "preference",
        ),
    ],
)
def test_an_option_of_the_method(settings, options, deviation):
    changed, deviations = override(GENERAL, settings)
    assert changed.stages[0].method_options == options
    check_runnable(changed)
    about_options = [text for text in deviations if "method_options" in text]
    assert len(about_options) == (deviation is not None)
    assert all(deviation in text for text in about_options)
    assert Recipe.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


def test_an_option_goes_to_the_stages_whose_method_has_it():
    two = replace(GENERAL, stages=(*GENERAL.stages, replace(GENERAL.stages[0], method="cagrad")))
    changed, _ = override(two, ["method_options.c=0.5"])
    assert [stage.method_options for stage in changed.stages] == [{}, {"c": 0.5}]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (["method_options.c=0.5"], "no option c; loss-sum has none"),
        (["method=cagrad", "method_options.d=1"], "cagrad has c, rescale, every, start_step"),
        (["method=cagrad", "method_options.rescal=1"], "did you mean rescale?"),
        (["method=cagrad", "method_options.c=much"], "must be of type float, like 0.4, got 'much'"),
        (["method=cagrad", "method_options.c=-1"], "method_options.c: must be at least 0, got -1"),
        (["method=cagrad", "method_options=1"], "name the option"),
        (["method=upgrad", 'method_options.preference={"sst": 1}'], "method_options.preference"),
        (["stages.1.method_options.c=1"], "no field stages.1"),
    ],
)
def test_an_option_that_the_method_cannot_have_is_refused_in_one_line(settings, found):
    with pytest.raises(RecipeError) as refusal:
        check_runnable(override(GENERAL, settings)[0])
    assert found in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_options_of_another_method_are_refused():
    changed = GENERAL.in_every_stage(method="pcgrad", method_options={"c": 0.5})
    with pytest.raises(RecipeError, match=r"options of pcgrad \(every, start_step, granularity\)"):
        check_runnable(changed)


def test_a_recipe_without_options_is_written_as_before_there_were_any():
    (stage,) = GENERAL.to_dict()["stages"]
    assert "method_options" not in stage


def test_a_dictionary_of_another_form_is_refused():
    for name in ("pairs", "stages"):
        fields = GENERAL.to_dict()
        del fields[name]
        with pytest.raises(RecipeError, match=name):
            Recipe.from_dict(fields)


def test_fields_with_defaults_may_be_left_out():
    fields = GENERAL.to_dict()
    for name in ("pooling", "betas", "regularisers", "dev_batches"):
        del fields[name]
    (stage,) = fields["stages"]
    for name in ("sampling", "tasks", "weighting"):
        del stage[name]
    for head in fields["heads"].values():
        head.clear()
    assert Recipe.from_dict(fields) == GENERAL


@pytest.mark.parametrize(
    "wrong",
    [
        {"tasks": ()},
        {"tasks": ("sst", "squad")},
        {"heads": {"sst": Head(), "quora": Head()}},
        {"losses": {"sst": "cross-entropy", "quora": "bce"}},
        {"pairs": {"quora": "joint-sep"}},
        {"stages": ()},
        {"stages": (Stage(),)},
        {"stages": (replace(GENERAL.stages[0], sampling=Sampling("joint", "batches")),)},
        {"selection": "loss"},
    ],
)
def test_an_incomplete_recipe_cannot_be_made(wrong):
    with pytest.raises(RecipeError, match="smet-walker/general-linear-loss-sum"):
        replace(GENERAL, **wrong)
