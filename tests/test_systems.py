"""Recipes against the inventory of the reports' systems, field by field, where it is at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.multitask_bert.recipe import RecipeError
from benchmarks.multitask_bert.systems import SIDE_BY_SIDE, all_recipes, find

INVENTORY = Path(__file__).parents[1] / "../shared/reference/results.json"
TASK_NAMES = {"sst": "sst", "para": "quora", "sts": "sts", "cfimdb": "cfimdb"}
LOSS_NAMES = {
    "cross_entropy": "cross-entropy",
    "binary_cross_entropy (single logit)": "bce",
    "mse": "mse",
}


def inventory() -> dict[str, dict]:
    if not INVENTORY.exists():
        pytest.skip("the inventory of the reports is not beside the checkout")
    return {item["id"]: item for item in json.loads(INVENTORY.read_text())}


@pytest.mark.parametrize("id", all_recipes())
def test_stated_fields(id):
    recipe, stated = find(id), inventory()[id]["recipe"]
    assert recipe.tasks == tuple(TASK_NAMES[task] for task in stated["tasks"])
    assert recipe.pairs == {TASK_NAMES[t]: pair for t, pair in stated["pair_encoding"].items()}
    assert recipe.losses == {TASK_NAMES[t]: LOSS_NAMES[x] for t, x in stated["losses"].items()}
    (stage,) = recipe.stages
    assert stage.method == stated["optimizer_method"]
    assert stated["sampling"]["name"] == "round-robin-joint"
    assert stage.sampling.name == "joint"
    for name, value in (
        ("stages.0.epochs", stated["epochs"]),
        ("stages.0.lr", stated["lr"]),
        ("stages.0.batch_size", stated["batch_size"]),
        ("head_dropout", stated["dropout"]["head"]),
        ("encoder_dropout", stated["dropout"]["encoder"]),
    ):
        found = stage if name.startswith("stages") else recipe
        ours = getattr(found, name.rpartition(".")[2])
        if value is None:
            assert name in recipe.assumed, name
        else:
            assert name not in recipe.assumed, name
            assert ours == value, name


@pytest.mark.parametrize("id", all_recipes())
def test_heads(id):
    recipe, stated = find(id), inventory()[id]["recipe"]["heads"]
    transforms = {None: "none", "relu(cos(u,v)) * 5": "relu-cos-5"}
    for name, head in stated.items():
        ours = recipe.heads[TASK_NAMES[name]]
        layers = ["linear:out" if x.startswith("linear(768->") else x for x in head["layers"]]
        assert ours.layers == tuple(layers)
        assert ours.output == transforms[head["output_transform"]]


@pytest.mark.parametrize("id", all_recipes())
def test_assumed_values(id):
    recipe, item = find(id), inventory()[id]
    assumed = {name: entry["value"] for name, entry in item["assumed"].items()}
    (stage,) = recipe.stages
    assert stage.lr == assumed["lr"]
    assert set(stage.batch_size.values()) == {assumed["batch_size"]}
    assert assumed["epoch_definition"].startswith(stage.sampling.epoch)
    assert recipe.encoder_dropout == assumed["encoder_dropout"]
    assert recipe.grad_clip == assumed["grad_clip"]
    assert assumed["sentence_embedding"].startswith(recipe.pooling)
    assert recipe.selection in assumed["selection"]
    settings = f"betas=({recipe.betas[0]},{recipe.betas[1]}), eps={recipe.eps:.0e}"
    assert (
        f"AdamW({settings}, weight_decay={recipe.weight_decay}".replace("e-06", "e-6")
        in (assumed["optimizer"])
    )
    if "pcgrad_reduction" in assumed:
        assert assumed["pcgrad_reduction"].startswith(stage.reduction)


def test_side_by_side_differs_in_surgery_alone():
    loss_sum, surgery = (find(id).to_dict() for id in SIDE_BY_SIDE)
    different = {key for key in loss_sum if loss_sum[key] != surgery[key]}
    assert different == {"id", "description", "assumed", "stages"}
    (one,), (other,) = loss_sum["stages"], surgery["stages"]
    assert {key for key in one if one[key] != other[key]} == {"method"}


def test_an_unknown_id_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean smet-walker/v2-dropout-0\.3"):
        find("smet-walker/v2-dropout-03")
