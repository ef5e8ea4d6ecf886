"""Recipes against the inventory of the reports' systems, field by field, where it is at hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from benchmarks.multitask_bert.methods import METHODS
from benchmarks.multitask_bert.recipes.catalog import SIDE_BY_SIDE, all_recipes, find, find_all
from benchmarks.multitask_bert.recipes.recipe import Recipe, RecipeError, Stage
from benchmarks.multitask_bert.recipes.void import void_stages
from benchmarks.multitask_bert.training.plan import check_runnable
from tests.paths import SHARED

INVENTORY_FILE = SHARED / "reference/results.json"
INVENTORY = (
    {item["id"]: item for item in json.loads(INVENTORY_FILE.read_text())}
    if INVENTORY_FILE.exists()
    else {}
)
RECIPES = all_recipes()
SYSTEMS = [id for id in RECIPES if not id.startswith(("control/", "method/"))]
CONTROLS = [id for id in RECIPES if id.startswith("control/")]
TASK_NAMES = {"sst": "sst", "para": "quora", "sts": "sts", "cfimdb": "cfimdb"}

with_inventory = pytest.mark.skipif(
    not INVENTORY, reason="the inventory of the reports is not beside the checkout"
)


def stated(id: str) -> dict:
    return INVENTORY[id]["recipe"]


def assumed(id: str) -> dict:
    return {name: entry["value"] for name, entry in INVENTORY[id]["assumed"].items()}


def main_stage(recipe: Recipe) -> Stage:
    """The stage on all tasks with everything trained."""
    (stage, *_) = [
        stage
        for stage in recipe.stages
        if stage.trainable == "all" and stage.tasks in ((), recipe.tasks)
    ] or recipe.stages
    return stage


@with_inventory
def test_every_system_with_a_result_has_a_recipe():
    counted = {id for id, item in INVENTORY.items() if item["count_in_seed"]}
    assert len(counted) == 47
    assert set(SYSTEMS) - counted == {"smet-walker/general-linear-loss-sum"}
    assert counted - set(SYSTEMS) == set()


@with_inventory
@pytest.mark.parametrize("id", SYSTEMS)
def test_tasks_and_pairs(id):
    recipe = find(id)
    assert recipe.tasks == tuple(TASK_NAMES[task] for task in stated(id)["tasks"])
    for name, pair in (stated(id)["pair_encoding"] or {}).items():
        ours = recipe.pairs[TASK_NAMES[name]]
        if pair == "joint":  # which of the two, is not stated
            assert ours == assumed(id)["joint_form"].partition(":")[0]
            assert f"pairs.{TASK_NAMES[name]}" in recipe.assumed
        else:
            assert ours == pair


def layers_of(layer: str) -> tuple[str, ...]:
    """A layer of the inventory in our words; its unstated hidden width is the encoder's."""
    if layer.startswith("LL"):
        return ("linear:D", "relu", "dropout")
    match = re.match(r"linear\((\w+)->(\w+)\)", layer)
    if match is None:
        return (layer,)
    width = match.group(2)
    return (f"linear:{'D' if width in ('h', '768') else 'out' if width in '125' else width}",)


@with_inventory
@pytest.mark.parametrize("id", SYSTEMS)
def test_heads(id):
    transforms = {
        "relu(cos(u,v)) * 5": "relu-cos-5",
        "tanh(logit) in (-1,1), scaled when the loss is computed": "tanh-scaled",
        "cos(u,v) in [-1,1]": "cos",
        "cos(u,v) in [-1,1]; MNR phase: S = u.v": "cos",
        "u.v (raw dot product)": "dot",
        "scaled cosine similarity": "cos-5",
    }
    for name, head in stated(id)["heads"].items():
        ours = find(id).heads[TASK_NAMES[name]]
        layers = tuple(part for layer in head["layers"] for part in layers_of(layer))
        # Where the dropout stands, is not stated in two reports.
        first = "dropout" in assumed(id).get("head_dropout_place", "") or "before" in assumed(
            id
        ).get("head_dropout_place", "")
        if first and layers and "dropout" not in layers:
            layers = ("dropout", *layers)
        assert ours.layers == layers
        transform = head["output_transform"]
        if transform is None and id == "jiang-yu/finetune-2" and name == "sts":
            assert ours.output == "cos"  # which its loss is of
        else:
            assert ours.output == transforms.get(transform, "none"), transform


@with_inventory
@pytest.mark.parametrize("id", SYSTEMS)
def test_losses(id):
    recipe = find(id)
    for name, text in stated(id)["losses"].items():
        task = TASK_NAMES[name]
        ours = recipe.losses[task]
        if text.startswith("first half"):
            assert [stage.losses.get(task, ours) for stage in recipe.stages] == [
                "mnr",
                "cosine-mse",
            ]
            assert recipe.stages[0].min_label == {task: stated(id)["extra"]["mnr"]["min_label"]}
        elif text.startswith("cosine-similarity loss"):
            assert ours == "cosine-mse"
        elif text == "cosine_embedding_loss":
            assert ours == "cosine-embedding"
        elif task in ("sst", "cfimdb"):
            assert (ours, text) == ("cross-entropy", "cross_entropy")
        elif task == "quora":
            assert ours == "bce"
            assert "cross" in text
        else:
            assert (ours, text[:3]) == ("mse", "mse")


@with_inventory
@pytest.mark.parametrize("id", SYSTEMS)
def test_method_and_sampling(id):
    recipe = find(id)
    stage = main_stage(recipe)
    method = stated(id)["optimizer_method"]
    sampling = (stated(id)["sampling"] or {"name": "single"})["name"]
    assert stage.method == {"pcgrad": "pcgrad", "none": "none"}.get(method, "loss-sum")
    samplings = {
        "round-robin-joint": "joint",
        "zip": "joint",
        "single": "joint",
        "round-robin-alternating": "round-robin",
    }
    assert stage.sampling.name == samplings.get(sampling, sampling)
    if method == "pcgrad":
        assert (stage.reduction, stage.scope) == ("mean", "all")
        assert any(name.endswith(".reduction") for name in recipe.assumed)
    text = stated(id)["epoch_definition"] or assumed(id).get("epoch_definition", "")
    if "3000" in text:
        assert stage.sampling.num_batches == 3000
    elif "largest" in text:
        assert stage.sampling.epoch == "largest"
    elif sampling not in ("sequential", "single"):
        assert stage.sampling.epoch == "smallest"


@with_inventory
@pytest.mark.parametrize("id", SYSTEMS)
def test_rates_and_sizes(id):
    recipe = find(id)
    stage, values = main_stage(recipe), assumed(id)
    fields = stated(id)
    lr = fields["lr"] if fields["lr"] is not None else values.get("lr")
    lr = lr["finetune"] if isinstance(lr, dict) else lr
    if lr is not None:
        assert stage.lr == lr
    size = fields["batch_size"] if fields["batch_size"] is not None else values.get("batch_size")
    if isinstance(size, dict):
        assert stage.batch_size == {TASK_NAMES[task]: number for task, number in size.items()}
    elif size is not None:
        assert set(stage.batch_size.values()) == {size}
    epochs = fields["epochs"] if fields["epochs"] is not None else values.get("epochs")
    if isinstance(epochs, dict) and "finetune" in epochs:
        assert [each.epochs for each in recipe.stages] == list(epochs.values())
        assert [each.lr for each in recipe.stages] == list(fields["lr"].values())
        assert [each.trainable for each in recipe.stages] == ["heads", "all"]
    elif isinstance(epochs, dict):
        assert [each.epochs for each in recipe.stages] == [1, 1, 1, 3, 1]
        assert [each.start for each in recipe.stages] == [*["initial"] * 3, "average", "continue"]
        assert [each.trainable for each in recipe.stages] == [*["all"] * 4, "heads"]
    else:
        assert sum(each.epochs for each in recipe.stages) == epochs
    dropout = fields["dropout"]["head"]
    if dropout is not None:
        assert recipe.head_dropout == dropout
        assert "head_dropout" not in recipe.assumed
    else:
        assert "head_dropout" in recipe.assumed
    assert recipe.encoder_dropout == assumed(id).get("encoder_dropout", 0.1)
    assert "encoder_dropout" in recipe.assumed


@with_inventory
@pytest.mark.parametrize("id", SYSTEMS)
def test_selection_and_regularisers(id):
    recipe = find(id)
    text = stated(id)["selection"] or ""
    text = (
        assumed(id).get("selection", text) if "criterion not stated" in text or not text else text
    )
    if "normalised" in text:
        assert recipe.selection == "normalised"
    elif "mean of the three" in text:
        assert recipe.selection == "mean"
    elif text.startswith("best dev"):
        assert recipe.selection == recipe.tasks[0]
    assert [each.name for each in recipe.regularisers] == [
        each["name"] for each in stated(id)["regularizers"]
    ]
    for regulariser in recipe.regularisers:
        smart = assumed(id)["smart"]
        assert regulariser.options == {
            "weight": smart["lambda"],
            "epsilon": smart["epsilon"],
            "noise_variance": smart["noise_var"],
            "step_size": smart["step_size"],
            "num_steps": smart["num_steps"],
        }
    assert recipe.dev_batches == ({"quora": 1000} if stated(id)["evaluation_mode"] else {})


@pytest.mark.parametrize("id", RECIPES)
def test_every_recipe_can_be_run(id):
    check_runnable(find(id))


@pytest.mark.parametrize("id", RECIPES)
def test_assumed_fields_exist(id):
    fields = find(id).to_dict()
    for name in find(id).assumed:
        place = fields
        for key in name.split("."):
            place = place[int(key)] if isinstance(place, list) else place[key]


@pytest.mark.parametrize("id", CONTROLS)
def test_a_control_names_the_system_that_it_changes(id):
    base = re.split(r"[ ,]", find(id).description)[0]
    assert base in RECIPES
    ours, theirs = find(id), RECIPES[base]
    assert replace(ours, id="", description="", assumed=()) != replace(
        theirs, id="", description="", assumed=()
    )


def test_the_methods_side_by_side_differ_in_their_method_alone():
    found = find_all(["method/*"])
    assert [recipe.stages[0].method for recipe in found] == [n for n in METHODS if n != "none"]
    assert [recipe.id for recipe in found] == [f"method/{r.stages[0].method}" for r in found]
    general = find("smet-walker/general-linear-loss-sum")
    plain = {"method": "loss-sum", "reduction": "mean", "scope": "all"}
    for recipe in found:
        same = replace(recipe.in_every_stage(**plain), id=general.id)
        assert replace(same, description=general.description) == general


def test_side_by_side_differs_in_surgery_alone():
    loss_sum, surgery = (find(id).to_dict() for id in SIDE_BY_SIDE)
    different = {key for key in loss_sum if loss_sum[key] != surgery[key]}
    assert different == {"id", "description", "assumed", "stages"}
    (one,), (other,) = loss_sum["stages"], surgery["stages"]
    assert {key for key in one if one[key] != other[key]} == {"method"}


def test_the_recipes_of_the_reports_with_a_void_stage_are_known():
    found = {id: void_stages(recipe) for id, recipe in RECIPES.items() if void_stages(recipe)}
    frozen = "the encoder is frozen, and heads share nothing"
    assert found == {
        "chada-jolly/novel-cs-gs": {4: frozen},
        "chada-jolly/novel-cs-gs-no-dropout": {4: frozen},
        "xu/dense-tuned-smart-pcgrad": {0: frozen},
        "control/chada-jolly-novel-without-average": {1: frozen},
        "control/xu-pcgrad-without-smart": {0: frozen},
    }


def test_an_unknown_id_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean smet-walker/v2-dropout-0\.3"):
        find("smet-walker/v2-dropout-03")


def test_patterns():
    found = [recipe.id for recipe in find_all(["benton/*", "xu/dense-default", "benton/baseline"])]
    assert found == [*(id for id in SYSTEMS if id.startswith("benton/")), "xu/dense-default"]
    with pytest.raises(RecipeError, match="nobody"):
        find_all(["benton/*", "nobody/*"])
