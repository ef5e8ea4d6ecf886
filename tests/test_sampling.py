"""Task samplers against hand-computed probabilities, exact sequences and their uninterrupted runs;
the multi-task loader against the batches its loaders yield when read alone."""

import enum
import io
import json
import math
import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from gradsurgery import (
    Annealed,
    MultiTaskLoader,
    Proportional,
    RoundRobin,
    Sequential,
    Shuffled,
    Temperature,
)

SIZES = {"sst": 8544, "quora": 141498, "sts": 6040}
SMALL = {"sst": 5, "quora": 7, "sts": 2}

# p ∝ exp(α ln N) in 40-digit decimal arithmetic for e = 1 .. 10, E = 10, rounded to 9 places.
ANNEALED = [
    (0.054740457, 0.906561935, 0.038697608),  # α = 1
    (0.068338225, 0.881838965, 0.049822810),
    (0.084699635, 0.851615696, 0.063684668),
    (0.104061508, 0.815246155, 0.080692337),
    (0.126518260, 0.772304177, 0.101177563),
    (0.151950923, 0.722728272, 0.125320805),
    (0.179966449, 0.666959982, 0.153073569),
    (0.209870237, 0.606032073, 0.184097690),
    (0.240693841, 0.541559605, 0.217746554),
    (0.271287163, 0.475605705, 0.253107132),  # α = 0.2
]

RANDOM = {
    "proportional": Proportional,
    "annealed": lambda sizes, **kwargs: Annealed(sizes, 4, **kwargs),
    "temperature": lambda sizes, **kwargs: Temperature(sizes, 0.5, **kwargs),
}
ALL = {
    **RANDOM,
    "round-robin": lambda sizes, seed=0, **kwargs: RoundRobin(sizes, **kwargs),
    "sequential": lambda sizes, seed=0, num_steps=None: Sequential(sizes),
    "shuffled": lambda sizes, seed=0, num_steps=None: Shuffled(sizes, seed=seed),
}
SEEDED = {name: build for name, build in ALL.items() if name in (*RANDOM, "shuffled")}
every_random_sampler = pytest.mark.parametrize("build", RANDOM.values(), ids=RANDOM.keys())
every_seeded_sampler = pytest.mark.parametrize("build", SEEDED.values(), ids=SEEDED.keys())
every_sampler = pytest.mark.parametrize("build", ALL.values(), ids=ALL.keys())


def through_json(state):
    return json.loads(json.dumps(state, sort_keys=True))


# Probabilities


@pytest.mark.parametrize("epoch", range(10))
def test_annealed_probabilities_are_the_hand_computed_ones(epoch):
    sampler = Annealed(SIZES, 10)
    sampler.set_epoch(epoch)
    assert list(sampler.probabilities) == ["sst", "quora", "sts"]
    # Half a unit of the table's last place, and float64 rounding far below it.
    assert list(sampler.probabilities.values()) == pytest.approx(ANNEALED[epoch], rel=0, abs=6e-10)


def test_annealed_keeps_the_last_alpha_after_its_last_epoch():
    sampler = Annealed(SIZES, 10)
    sampler.set_epoch(25)
    assert list(sampler.probabilities.values()) == pytest.approx(ANNEALED[-1], rel=0, abs=6e-10)


def test_annealed_over_one_epoch_is_proportional():
    sampler = Annealed(SIZES, 1)
    for epoch in (0, 1, 5):
        sampler.set_epoch(epoch)
        assert sampler.probabilities == Proportional(SIZES).probabilities


def test_proportional_probabilities_are_shares_of_the_sum():
    expected = {task: n / 156082 for task, n in SIZES.items()}
    assert Proportional(SIZES).probabilities == pytest.approx(expected, rel=1e-15, abs=0)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.0, [1 / 3, 1 / 3, 1 / 3]),
        (0.5, [1 / 6, 2 / 6, 3 / 6]),
        (1, [1 / 14, 4 / 14, 9 / 14]),
        (-0.5, [6 / 11, 3 / 11, 2 / 11]),
        (1e308, [0, 0, 1]),
        (-1e308, [1, 0, 0]),
    ],
)
def test_temperature_probabilities(alpha, expected):
    sampler = Temperature({"a": 1, "b": 4, "c": 9}, alpha, num_steps=50)
    assert list(sampler.probabilities.values()) == pytest.approx(expected, rel=1e-15, abs=0)
    assert all(sampler.probabilities[task] > 0 for task in sampler)


# Draws


@every_random_sampler
@pytest.mark.parametrize("epoch", [0, 3])
def test_draws_have_the_stated_frequencies(build, epoch):
    sampler = build(SIZES)
    sampler.set_epoch(epoch)
    counts = Counter(sampler)
    statistic = sum(
        (counts[task] - p * len(sampler)) ** 2 / (p * len(sampler))
        for task, p in sampler.probabilities.items()
    )
    # Pearson's statistic of 3 tasks is chi-square with 2 degrees of freedom, whose tail is
    # P(X > x) = exp(-x / 2); every expected count is above 6000. The bound is passed by right
    # probabilities but once in a million seeds; a share wrong by 0.02 overshoots it by ten
    # standard deviations.
    assert statistic < -2 * math.log(1e-6)


@every_random_sampler
def test_draws_are_independent_of_the_draw_before(build):
    draws = list(build({"a": 3, "b": 2}, num_steps=20_000))
    p = build({"a": 3, "b": 2}).probabilities["a"]
    pairs = Counter(zip(draws[::2], draws[1::2], strict=True))
    expected = {
        (x, y): 10_000 * q * r
        for x, q in zip("ab", (p, 1 - p), strict=True)
        for y, r in zip("ab", (p, 1 - p), strict=True)
    }
    statistic = sum((pairs[pair] - n) ** 2 / n for pair, n in expected.items())
    # 3 degrees of freedom: P(X > x) <= (1 + sqrt(x)) exp(-x / 2), below 1e-6 at x = 31.5.
    assert statistic < 31.5


def test_alpha_one_draws_as_proportional():
    proportional = list(Proportional(SMALL, seed=3))
    assert list(Temperature(SMALL, 1.0, seed=3)) == proportional
    assert list(Annealed(SMALL, 9, seed=3)) == proportional


def test_round_robin_cycles_in_mapping_order():
    sampler = RoundRobin({"sts": 1, "sst": 9, "quora": 1}, num_steps=7)
    assert list(sampler) == ["sts", "sst", "quora", "sts", "sst", "quora", "sts"]


def test_sequential_finishes_each_task_in_mapping_order():
    assert list(Sequential({"sts": 2, "sst": 3, "quora": 1})) == [
        *["sts"] * 2,
        *["sst"] * 3,
        "quora",
    ]


@every_sampler
def test_length_is_the_number_of_draws(build):
    sampler = build(SMALL)
    assert len(sampler) == len(list(sampler)) == sum(SMALL.values())
    if not isinstance(sampler, Sequential | Shuffled):
        assert len(build(SMALL, num_steps=31)) == len(list(build(SMALL, num_steps=31))) == 31


def test_shuffled_draws_every_batch_exactly_once_an_epoch():
    for seed in range(20):
        sampler = Shuffled(SMALL, seed=seed)
        for epoch in range(5):
            sampler.set_epoch(epoch)
            assert Counter(sampler) == SMALL


def test_shuffled_orders_are_equally_likely():
    counts = Counter()
    for seed in range(6000):
        counts["".join(Shuffled({"a": 2, "b": 1, "c": 1}, seed=seed))] += 1
    assert len(counts) == 12  # 4! / 2!, each expected 500 times
    # Pearson's statistic, with 11 degrees of freedom: P(X > 50) is below 1e-6.
    assert sum((n - 500) ** 2 / 500 for n in counts.values()) < 50


@every_seeded_sampler
def test_seed_and_epoch_each_change_the_draws(build):
    draws = set()
    for seed in range(4):
        sampler = build({"a": 16, "b": 16, "c": 16, "d": 16}, num_steps=64, seed=seed)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            draws.add(tuple(sampler))
    assert len(draws) == 16  # (seed 0, epoch 1) is not (seed 1, epoch 0)


@every_sampler
def test_an_epoch_repeats_itself_whatever_came_before(build):
    sampler = build(SMALL)
    sampler.set_epoch(2)
    third = list(sampler)
    assert list(sampler) == third
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        last = list(sampler)
    assert last == third


@every_sampler
def test_global_random_state_is_neither_used_nor_changed(build):
    torch.manual_seed(1)
    random.seed(1)
    expected = list(build(SMALL))
    torch.manual_seed(2)
    random.seed(2)
    states = torch.get_rng_state(), random.getstate()
    sampler = build(SMALL)
    loader = MultiTaskLoader({task: [0, 1] for task in SMALL}, sampler)
    assert [task for task, _ in loader] == expected
    sampler.load_state_dict(sampler.state_dict())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


@every_seeded_sampler
def test_draws_do_not_follow_default_device_or_dtype(build):
    # Many draws: probabilities rounded to bfloat16 move only about one in a thousand.
    expected = list(build(SIZES))
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            assert list(build(SIZES)) == expected
    finally:
        torch.set_default_dtype(dtype)


# State


@every_sampler
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.dictionaries(st.text(max_size=3), st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(-(2**70), 2**70),
    num_steps=st.none() | st.integers(1, 20),
    epoch=st.integers(0, 6),
)
def test_resumes_at_every_position(build, sizes, seed, num_steps, epoch):
    sampler = build(sizes, seed=seed, num_steps=num_steps)
    sampler.set_epoch(epoch)
    whole = list(sampler)
    sampler.set_epoch(epoch + 1)
    following = list(sampler)
    for position in range(len(whole) + 1):
        sampler.set_epoch(epoch)
        head = list(islice(sampler, position))
        state = through_json(sampler.state_dict())
        sampler.set_epoch(epoch + 1)
        resumed = build(sizes, seed=seed, num_steps=num_steps)
        assert (state["epoch"], state["position"]) == (epoch, position)
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)  # as a training loop does at the head of each epoch
        assert head + list(resumed) == whole
        assert resumed.state_dict()["position"] == len(whole)
        assert list(resumed) == whole
        resumed.set_epoch(epoch + 1)
        assert list(resumed) == following


@every_sampler
def test_state_is_plain_json(build):
    state = build(SMALL).state_dict()
    assert through_json(state) == state


class Name(str, enum.Enum):
    A = "a"
    B = "b"


@pytest.mark.parametrize("names", [np.array(["a", "b"]), list(Name)], ids=["numpy", "enum"])
@every_sampler
def test_state_is_readable_whatever_made_names_and_numbers(build, names):
    sizes = dict(zip(names, np.array([3, 2]), strict=True))
    sampler = build(sizes, seed=np.int64(5), num_steps=np.int32(5))
    loader = MultiTaskLoader({name: [1, 2, 3] for name in names}, sampler)
    loader.set_epoch(np.int64(1))
    whole = list(loader)
    assert [type(task) for task, _ in whole] == [str] * 5
    loader.load_state_dict(MultiTaskLoader({n: [1, 2, 3] for n in names}, sampler).state_dict())
    loader.sampler.load_state_dict(build(sizes, seed=5, num_steps=5).state_dict())
    loader.set_epoch(1)
    head = list(islice(loader, 2))
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state == through_json(state)
    again = MultiTaskLoader({n: [1, 2, 3] for n in "ab"}, build({"a": 3, "b": 2}, seed=5))
    again.load_state_dict(state)
    assert head + list(again) == whole


def test_another_epoch_starts_from_its_beginning():
    sampler = Proportional(SMALL)
    sampler.set_epoch(1)
    expected = list(sampler)
    sampler = Proportional(SMALL)
    list(islice(sampler, 3))
    resumed = Proportional(SMALL)
    resumed.load_state_dict(sampler.state_dict())
    resumed.set_epoch(1)
    assert list(resumed) == expected


def test_an_iteration_that_was_broken_off_starts_over_and_leaves_the_state_alone():
    sampler = Proportional(SMALL)
    abandoned = iter(sampler)
    head = list(islice(abandoned, 3))
    assert list(islice(sampler, 3)) == head
    sampler.set_epoch(1)
    rest = list(abandoned)
    assert sampler.state_dict()["epoch"] == 1
    assert sampler.state_dict()["position"] == 0
    sampler.set_epoch(0)
    assert head + rest == list(sampler)


@pytest.mark.parametrize(
    ("saved", "name"),
    [
        (RoundRobin(SMALL), "sampler"),
        (Temperature(SMALL, 0.5), "sampler"),
        (Annealed({**SMALL, "sst": 6}, 4), "sizes"),
        (Annealed({**SMALL, "cfimdb": 1}, 4), "sizes"),
        (Annealed(dict(reversed(SMALL.items())), 4), "sizes"),
        (Annealed(SMALL, 4, num_steps=13), "num_steps"),
        (Annealed(SMALL, 4, seed=1), "seed"),
        (Annealed(SMALL, 5), "num_epochs"),
    ],
)
def test_state_of_another_sampler_is_refused_and_changes_nothing(saved, name):
    sampler = Annealed(SMALL, 4)
    whole = list(sampler)
    draws = iter(sampler)
    head = list(islice(draws, 4))
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=rf"^state_dict must be .*, found {name} .+; .+$"):
        sampler.load_state_dict(saved.state_dict())
    assert sampler.state_dict() == before
    assert head + list(draws) == whole


def test_temperature_state_of_another_alpha_is_refused():
    with pytest.raises(ValueError, match=r"found alpha 0\.5 where this one has 0\.25"):
        Temperature(SMALL, 0.25).load_state_dict(Temperature(SMALL, 0.5).state_dict())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"position": 15}, ValueError, r"state_dict\['position'\] must be <= 14"),
        ({"position": -1}, ValueError, r"state_dict\['position'\] must be an int >= 0"),
        ({"position": 1.0}, TypeError, r"state_dict\['position'\] must be an int >= 0"),
        ({"epoch": -1}, ValueError, r"state_dict\['epoch'\] must be an int >= 0"),
    ],
)
def test_malformed_state_is_refused_and_changes_nothing(change, error, message):
    sampler = Proportional(SMALL)
    before = sampler.state_dict()
    with pytest.raises(error, match=message):
        sampler.load_state_dict({**before, **change})
    assert sampler.state_dict() == before


@pytest.mark.parametrize("key", Proportional(SMALL).state_dict())
def test_incomplete_state_is_refused(key):
    state = Proportional(SMALL).state_dict()
    del state[key]
    with pytest.raises(ValueError, match=rf"must be a state of Proportional, found no '{key}'"):
        Proportional(SMALL).load_state_dict(state)


# Arguments


@every_sampler
@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({}, ValueError, "sizes must name at least one task"),
        ([3, 4], TypeError, "sizes must map task names to ints, found a list"),
        ({0: 3}, TypeError, "sizes must have str keys, found 0"),
        ({"sst": 3, "sts": 0}, ValueError, r"sizes\['sts'\] must be an int >= 1, found 0"),
        ({"sst": -3}, ValueError, r"sizes\['sst'\] must be an int >= 1, found -3"),
        ({"sst": 3.0}, TypeError, r"sizes\['sst'\] must be an int >= 1, found 3\.0"),
        ({"sst": True}, TypeError, r"sizes\['sst'\] must be an int >= 1, found True"),
    ],
)
def test_sizes_are_checked(build, sizes, error, message):
    with pytest.raises(error, match=rf"^{message}.*; .+$"):
        build(sizes)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: RoundRobin(SMALL, num_steps=0), ValueError, "num_steps must be an int >= 1"),
        (lambda: Proportional(SMALL, num_steps=0), ValueError, "num_steps must be an int >= 1"),
        (lambda: Proportional(SMALL, num_steps=2.5), TypeError, "num_steps must be an int >= 1"),
        (lambda: Proportional(SMALL, seed="0"), TypeError, "seed must be an int, found '0'"),
        (lambda: Shuffled(SMALL, seed=1.5), TypeError, "seed must be an int, found 1.5"),
        (lambda: Annealed(SMALL, 0), ValueError, "num_epochs must be an int >= 1, found 0"),
        (lambda: Annealed(SMALL, 9.5), TypeError, "num_epochs must be an int >= 1"),
        (lambda: Temperature(SMALL, math.nan), ValueError, "alpha must be a finite float"),
        (lambda: Temperature(SMALL, -math.inf), ValueError, "alpha must be a finite float"),
        (lambda: Temperature(SMALL, "0.5"), TypeError, "alpha must be a finite float"),
        (lambda: Sequential(SMALL).set_epoch(-1), ValueError, "epoch must be an int >= 0"),
        (lambda: Sequential(SMALL).set_epoch(None), TypeError, "epoch must be an int >= 0"),
    ],
)
def test_numbers_are_checked(build, error, message):
    with pytest.raises(error, match=rf"^{message}.*; .+$"):
        build()


# The loader


class Recorder:
    """Batches 0 .. n-1 of each pass; writes down what is asked of it."""

    def __init__(self, num_batches):
        self.num_batches = num_batches
        self.calls = []

    def set_epoch(self, epoch):
        self.calls.append(("set_epoch", epoch))

    def __iter__(self):
        self.calls.append("iter")
        return iter(range(self.num_batches))


def shuffled(num_examples, seed):
    """A DataLoader whose order is a function of its epoch."""
    data = list(range(num_examples))
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True, seed=seed)
    return DataLoader(data, batch_size=3, sampler=sampler)


def multi_task(sampler):
    return MultiTaskLoader(
        {"sst": shuffled(10, 0), "quora": shuffled(14, 1), "sts": shuffled(4, 2)}, sampler
    )


def values(pairs):
    return [(task, batch.tolist()) for task, batch in pairs]


def test_loader_follows_the_sampler_and_passes_go_on_across_epochs():
    sampler = RoundRobin({"a": 1, "b": 1}, num_steps=5)
    loader = MultiTaskLoader({"b": "xyzw", "a": [1, 2]}, sampler)
    assert len(loader) == 5
    assert list(loader) == [("a", 1), ("b", "x"), ("a", 2), ("b", "y"), ("a", 1)]
    loader.set_epoch(1)
    assert sampler.epoch == 1
    assert list(loader) == [("a", 2), ("b", "z"), ("a", 1), ("b", "w"), ("a", 2)]


def test_loaders_are_opened_once_a_pass_and_no_earlier_than_needed():
    first, second = Recorder(2), Recorder(3)
    sampler = Sequential({"first": 5, "second": 1})
    loader = MultiTaskLoader({"first": first, "second": second}, sampler)
    pairs = iter(loader)
    assert first.calls == []
    assert [batch for _, batch in islice(pairs, 2)] == [0, 1]
    assert first.calls == [("set_epoch", 0), "iter"]
    assert [batch for _, batch in islice(pairs, 3)] == [0, 1, 0]
    assert second.calls == []
    assert list(pairs) == [("second", 0)]
    assert first.calls == [c for number in range(3) for c in (("set_epoch", number), "iter")]
    assert second.calls == [("set_epoch", 0), "iter"]


def test_data_loader_restarts_with_another_order():
    alone = shuffled(10, 0)
    expected = []
    for number in range(3):
        alone.sampler.set_epoch(number)
        expected += [batch.tolist() for batch in alone]
    assert expected[:4] != expected[4:8]
    loader = MultiTaskLoader({"sst": shuffled(10, 0)}, RoundRobin({"sst": 12}))
    assert values(loader) == [("sst", batch) for batch in expected]


def test_data_loader_with_its_own_generator_restarts():
    def build():
        data = list(range(64))
        generator = torch.Generator().manual_seed(5)
        return DataLoader(data, batch_size=16, shuffle=True, generator=generator)

    alone = build()
    expected = [batch.tolist() for _ in range(2) for batch in alone]
    assert expected[:4] != expected[4:]
    loader = MultiTaskLoader({"sst": build()}, RoundRobin({"sst": 8}))
    assert values(loader) == [("sst", batch) for batch in expected]


def test_the_pass_number_reaches_a_batch_sampler():
    class EpochBatches(BatchSampler):
        def set_epoch(self, epoch):
            self.sampler = [epoch, epoch]

    data = list(range(4))
    loader = DataLoader(data, batch_sampler=EpochBatches([0, 0], 1, False))
    pairs = MultiTaskLoader({"sst": loader}, RoundRobin({"sst": 6}))
    assert [batch.item() for _, batch in pairs] == [0, 0, 1, 1, 2, 2]


@every_sampler
def test_loader_resumes_at_every_position(build):
    def epochs(loader, start=0):
        for epoch in range(start, 3):
            loader.set_epoch(epoch)
            yield from loader

    build_loader = lambda: multi_task(build(SMALL))  # noqa: E731
    loader = build_loader()
    states, batches = [loader.state_dict()], []
    for pair in epochs(loader):
        batches.append(pair)
        states.append(through_json(loader.state_dict()))
    assert len(batches) == 3 * sum(SMALL.values())
    assert states[-1]["loaders"]["sts"]["pass"] >= 1
    for position, state in enumerate(states):
        resumed = build_loader()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = epochs(resumed, start=state["sampler"]["epoch"])
        assert values(rest) == values(batches[position:])
        assert resumed.state_dict() == states[-1]


def test_loading_into_a_used_loader_takes_it_back():
    loader = multi_task(Proportional(SMALL))
    pairs = iter(loader)
    list(islice(pairs, 5))
    state = loader.state_dict()
    rest = values(pairs)
    for _ in range(2):
        loader.load_state_dict(state)
        assert values(loader) == rest
    assert len(rest) == len(loader) - 5


@pytest.mark.parametrize(
    "empty", [[], DataLoader([], batch_size=2), DataLoader([1], batch_size=2, drop_last=True)]
)
def test_an_empty_loader_is_an_error(empty):
    loader = MultiTaskLoader({"a": [1], "b": empty}, RoundRobin({"a": 1, "b": 1}))
    pairs = iter(loader)
    assert next(pairs) == ("a", 1)
    with pytest.raises(ValueError, match=r"^loaders\['b'\] must yield a batch .* pass 0; .+$"):
        next(pairs)


def test_an_iterator_that_runs_out_is_an_error():
    loader = MultiTaskLoader({"a": iter([1, 2])}, RoundRobin({"a": 3}))
    pairs = iter(loader)
    assert list(islice(pairs, 2)) == [("a", 1), ("a", 2)]
    with pytest.raises(ValueError, match=r"loaders\['a'\] must yield a batch .* pass 1; .*again"):
        next(pairs)


def test_names_of_loaders_and_sampler_must_agree():
    message = r"found loaders \['a', 'c'\] and sampler tasks \['a', 'b'\]; .+$"
    with pytest.raises(ValueError, match=message):
        MultiTaskLoader({"a": [1], "c": [1]}, RoundRobin({"a": 1, "b": 1}))


def test_arguments_of_the_loader_are_checked():
    with pytest.raises(TypeError, match=r"^loaders\['a'\] must be iterable, found int; .+$"):
        MultiTaskLoader({"a": 3}, RoundRobin({"a": 1}))
    with pytest.raises(TypeError, match=r"^sampler must be a task sampler, found list; .+$"):
        MultiTaskLoader({"a": [1]}, ["a"])


def other_tasks(state):
    state["loaders"]["cfimdb"] = state["loaders"].pop("sst")


def other_sampler(state):
    state["sampler"] = Sequential(SMALL).state_dict()


def negative_count(state):
    state["loaders"]["sts"]["batches"] = -1


def no_loaders(state):
    del state["loaders"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_tasks, r"^state_dict must be of the same tasks, found .*cfimdb.* has .*sst.*; "),
        (other_sampler, r"^state_dict must be of an equal sampler, found sampler 'Sequential'"),
        (negative_count, r"^state_dict\['loaders'\]\['sts'\]\['batches'\] must be an int >= 0"),
        (no_loaders, r"^state_dict must be a state of MultiTaskLoader, found no 'loaders'"),
    ],
)
def test_loader_state_of_others_is_refused_and_changes_nothing(spoil, message):
    whole = values(multi_task(RoundRobin(SMALL)))
    loader = multi_task(RoundRobin(SMALL))
    pairs = iter(loader)
    head = values(islice(pairs, 6))
    before = loader.state_dict()
    state = through_json(multi_task(RoundRobin(SMALL)).state_dict())
    spoil(state)
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(state)
    assert loader.state_dict() == before
    assert head + values(pairs) == whole


def test_a_loader_shorter_than_its_state_is_an_error():
    sampler = RoundRobin({"a": 6})
    loader = MultiTaskLoader({"a": range(6)}, sampler)
    list(islice(loader, 4))
    shorter = MultiTaskLoader({"a": range(3)}, RoundRobin({"a": 6}))
    shorter.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match=r"^loaders\['a'\] must have the 4 batches .* found 3; "):
        next(iter(shorter))
