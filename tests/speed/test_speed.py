"""The speed suite on small sizes: methods against the oracle, wrong ones refused, tables drawn.

Times are not judged, only that they are taken, of the right things.
"""

from __future__ import annotations

import ast
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchjd.aggregation import Mean
from transformers import BertConfig, BertModel, BertTokenizerFast

from benchmarks.speed import (
    adamw,
    answers,
    bench_kernels,
    bench_steps,
    capture,
    compiled,
    frozen,
    joint,
    kernels,
    launches,
    steps,
    surgery,
    table,
    trainer,
    weights,
)
from benchmarks.speed.__main__ import main
from benchmarks.speed.answers import WrongAnswerError, check, checked, expected_update
from benchmarks.speed.measure import Action, Quartiles, Timings, interleaved
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.methods import FAMILY, METHODS, TORCHJD, Ours, TorchJD, pcgrad
from benchmarks.speed.surgery import Gradients
from benchmarks.speed.targets import Finding, Settings, Target
from benchmarks.speed.workloads import (
    BERT_BASE,
    MINILM,
    TINY,
    PooledEncoder,
    make_bert,
    make_joint_control,
    make_mlp,
)
from gradsurgery import PCGrad
from tests import oracle

SMALL = {
    "bert-2": partial(make_bert, TINY, 2, 5, num_tasks=2),
    "bert-3": partial(make_bert, TINY, 2, 5),
    "mlp-2": partial(make_mlp, 2, 2000),
    "mlp-3": partial(make_mlp, 3, 2000),
    "mlp-8": partial(make_mlp, 8, 2000),
}
QUICK = Settings(rounds=2, quick=True)


def reported(capsys):
    return capsys.readouterr().out


# Workloads and answers


def test_geometries_have_the_parameters_of_the_targets():
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in PooledEncoder(config).parameters())
            for config in (MINILM, BERT_BASE)
        ]
    assert [round(count / 1e6, 1) for count in counts] == [22.7, 109.5]
    assert counts[0] == surgery.MINILM_PARAMETERS


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("num_tasks", "num_parameters"), [(2, 6), (3, 6), (5, 6), (5, 2)])
def test_the_check_is_the_oracle(num_tasks, num_parameters, seed):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(num_tasks, num_parameters))
    orders = [generator.permutation(num_tasks).tolist() for _ in range(num_tasks)]
    expected, weights = oracle.pcgrad(rows, orders)
    found, num_projections = expected_update(torch.from_numpy(rows), orders, onto_itself=False)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert (num_projections > 0) == bool(weights.max() > 1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", SMALL)
def test_every_method_gives_the_answer_that_it_promises(size, name):
    method = METHODS[name](SMALL[size]())
    is_sum = name in ("plain", "plain loop", "joint batch", "loss-sum", "loss-sum monitor")
    has_weights = method.weights(torch.eye(method.workload.num_tasks).double()) is not None
    # A solver magnifies the rounding of products in float32.
    bound = answers.TOLERANCE if has_weights else 1e-5
    for _ in range(2):
        assert check(method) < bound
    assert has_weights + (method.orders() is not None) + is_sum == 1


@pytest.mark.parametrize("name", joint.METHODS)
def test_every_method_on_a_joint_batch_gives_the_answer_that_it_promises(name):
    method = joint.METHODS[name](make_joint_control(3, 8, 2))
    assert check(method) < 1e-5
    assert (method.orders() is None) == (name in ("joint batch", "plain loop"))


def test_orders_matter_to_the_check():
    # At T=3 one of the orders that a peer draws must lead elsewhere, or the check sees none of it.
    method = METHODS["torchjd chunk=1 optimize=off"](make_mlp(3, 2000))
    rows = answers.task_rows(method.workload, method.workload.shared())
    updates = {
        tuple(expected_update(rows, [first, [0, 2], [0, 1]], onto_itself=False)[0][:9].tolist())
        for first in itertools.permutations([1, 2])
    }
    assert len(updates) == 2


class Halved(Ours):
    """Leaves half of the combined gradient."""

    def surgery(self):
        super().surgery()
        for parameter in self.workload.shared():
            parameter.grad.mul_(0.5)


class NotANumber(Ours):
    def surgery(self):
        super().surgery()
        if self.num_steps == 2:
            self.workload.shared()[0].grad[0] = float("nan")


class ContaminatedHeads(Ours):
    """Changes what belongs to one task alone."""

    def surgery(self):
        super().surgery()
        self.workload.separate()[0].grad.mul_(1.5)


class LaterMistake(Ours):
    """Right in its first step only."""

    def surgery(self):
        super().surgery()
        if self.num_steps:
            self.workload.shared()[0].grad.mul_(0.9)


class AnotherOrder(Ours):
    def orders(self):
        return [list(reversed(order)) for order in super().orders()]


def mean_of_peer(workload):
    method = TorchJD(workload, parallel_chunk_size=1, optimize_gramian_computation=False)
    method.aggregator = Mean()
    return method


def reduced_by_mean(workload):
    return Ours(workload, wrap=lambda base: PCGrad(base, reduction="mean"))


def heads_projected(workload):
    return Ours(workload, wrap=lambda base: PCGrad(base, scope="all"))


WRONG = {
    **{kind.__name__: partial(kind, wrap=pcgrad) for kind in (
        Halved, NotANumber, ContaminatedHeads, LaterMistake)},
    "mean of peer": mean_of_peer,
    "reduced by mean": reduced_by_mean,
    "heads projected": heads_projected,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_method_is_refused(name):
    with pytest.raises(WrongAnswerError, match="combined gradient: must be that of the algorithm"):
        check(WRONG[name](make_mlp(3, 2000)))


def test_a_method_that_draws_other_orders_is_refused():
    with pytest.raises(WrongAnswerError):
        check(AnotherOrder(make_mlp(8, 2000), wrap=pcgrad))


def test_a_workload_without_conflict_checks_nothing():
    workload = make_mlp(2, 2000)
    workload.targets = [1.0, 1.0]
    workload.inputs[1] = workload.inputs[0]
    with pytest.raises(ValueError, match="must have a conflict"):
        check(METHODS["pcgrad"](workload))


def test_refused_methods_are_named_and_the_others_kept():
    def broken(workload):
        method = METHODS["plain"](workload)
        method.backwards = lambda: (_ for _ in ()).throw(RuntimeError("no\nkernel"))
        return method

    makers = {"good": METHODS["plain"], "bad": WRONG["Halved"], "broken": broken}
    right, refused = checked(makers, partial(make_mlp, 3, 2000))
    assert list(right) == ["good"]
    assert refused["bad"].startswith("wrong answer (combined gradient")
    assert refused["broken"] == "failed (no kernel)"


def test_a_peer_that_is_wrong_is_not_timed(monkeypatch):
    for name in [*TORCHJD, "pytorch_optimizer"]:
        monkeypatch.setitem(METHODS, name, WRONG["Halved"])
    keys = frozenset({"step", "torchjd", "pytorch-optimizer"})
    found = table.choose(["step"])[0].experiment(QUICK, keys)
    assert found["step"].value > 0
    for key in ("torchjd", "pytorch-optimizer"):
        assert found[key].value is None
        assert "wrong answer" in found[key].measured
    assert any("not timed, wrong answer" in note for note in found["step"].notes)


# Measurements


def test_actions_take_turns_and_warm_up_does_not_count():
    calls = []
    actions = {
        "a": Action(lambda: calls.append("a"), prepare=lambda: calls.append("before a")),
        "b": Action(lambda: calls.append("b")),
    }
    timings = interleaved(actions, rounds=3, warm_up=2)
    assert calls == ["before a", "a", "b"] * 5
    assert [len(seconds) for seconds in timings.seconds.values()] == [3, 3]
    assert min(timings.seconds["a"]) > 0


def test_ratios_are_of_rounds_and_not_of_medians():
    timings = Timings({"a": [1.0, 10.0, 3.0], "b": [1.0, 5.0, 1.0]})
    assert timings.ratio("a", to="b") == Quartiles(1.5, 2.0, 2.5)
    assert timings.fastest(["a", "b"]) == "b"
    with pytest.raises(ValueError, match="rounds: must be at least 1, got 0"):
        interleaved({}, rounds=0)


def test_peak_memory_is_counted_to_the_byte():
    def temporaries():
        first = torch.ones(1000)
        second = first + 1  # 8,000 bytes now
        del first
        return second.sum()

    peaks = {peak_bytes(temporaries) for _ in range(3)}
    assert len(peaks) == 1
    assert 8000 <= peaks.pop() <= 8000 + 64  # and the sum, of one number


def test_rows_take_the_memory_that_the_target_allows():
    make = partial(make_mlp, 3, 200_000)
    workload = make()
    above = steps.step_peak_bytes(METHODS["pcgrad"], workload) - steps.step_peak_bytes(
        METHODS["loss-sum"], make()
    )
    assert 1 < above / (workload.num_shared * 4) <= 3 * 1.05


def test_flops_of_ours_are_those_of_the_loss_sum_and_a_peers_are_more():
    counts = {
        name: steps.count_flops(METHODS[name](make_mlp(3, 2000)))
        for name in ("plain", "loss-sum", "pcgrad", next(iter(TORCHJD)))
    }
    assert counts["plain"] == counts["loss-sum"] == counts["pcgrad"] > 0
    assert counts[next(iter(TORCHJD))] > 2 * counts["pcgrad"]


def test_surgery_alone_is_checked(monkeypatch):
    gradients = Gradients(3, 1000)
    gradients.check()
    monkeypatch.setattr(gradients, "rows", gradients.rows * 2)  # after the capture
    monkeypatch.setattr(gradients, "capture", lambda: None)
    with pytest.raises(WrongAnswerError):
        gradients.check()


@pytest.mark.parametrize("way", capture.WAYS)
def test_captured_rows_are_the_gradients_of_the_tasks(way):
    step = capture.WAYS[way](make_bert(TINY, 2, 5))
    capture._check(way, step)
    assert all(parameter.grad is None for parameter in step.workload.shared())
    if step.has_rows:
        step.rows[1, 0] += 1
        step.capture = lambda task: None
        with pytest.raises(WrongAnswerError, match="rows must be the tasks' gradients"):
            capture._check(way, step)


def test_a_compiled_model_gives_the_gradient_of_the_eager_one():
    assert compiled.compare(QUICK, "cpu", "aot_eager") <= 1e-5
    torch.compiler.reset()


# Tables


def test_targets_judge():
    assert [Target("≤", 1.5).met(value) for value in (1.5, 1.6)] == [True, False]
    assert [Target("≥", 2).met(value) for value in (2, 1.9)] == [True, False]
    assert [Target("=", 1).met(value) for value in (1, 1.001)] == [True, False]
    row = table.choose(["step"])[0]
    assert row.verdict(Finding("1.04", 1.04)) == "met"
    assert row.verdict(Finding("1.06", 1.06)) == "missed"
    assert row.verdict(Finding("not measured (x)", None)) == "not measured"


def test_the_table_has_a_verdict_for_each_row(capsys):
    keys = ["step", "flops", "memory", "surgery", "weights", "training-fp32", "graph"]
    assert main(["table", "--quick", "--rounds", "2", "--rows", *keys]) == 0
    lines = reported(capsys).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2 : 2 + len(keys)]]
    verdicts = {row.key: cell for row, cell in zip(table.choose(keys), cells, strict=True)}
    assert verdicts["flops"][1].startswith("1.0000 (TorchJD: ")
    assert verdicts["flops"][2:] == ["= 1", "met"]
    for key in ("step", "memory", "surgery", "weights"):
        assert verdicts[key][3] in ("met", "missed")
    assert verdicts["training-fp32"][1:] == [
        "not measured (needs --data and --encoder)", "≥ 1.5", "not measured",
    ]  # fmt: skip
    assert verdicts["graph"][1] == "not measured (needs --device cuda)"
    assert lines[-1].startswith("quick: tiny sizes, not a measurement; 2 rounds; seed 0; 1 threads")
    assert f"torch {torch.__version__}" in lines[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_without_cuda_its_rows_are_not_measured(capsys):
    assert main(["table", "--device", "cuda"]) == 0
    rows = [line for line in reported(capsys).splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(table.ROWS)
    assert all(line.endswith("| not measured |") for line in rows)
    assert sum("no CUDA device here" in line for line in rows) == 6
    assert main(["kernels", "--device", "cuda"]) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_row_of_cuda_can_be_measured():
    rows = [row for row in table.ROWS if row.device == "cuda"]
    for key, finding in table.measure(rows, "cuda", QUICK).items():
        assert finding.value is not None, key


def test_an_unknown_row_is_refused(capsys):
    assert main(["table", "--rows", "nonsense"]) == 2
    assert "rows: must be of step, " in capsys.readouterr().err


def test_kernels_leave_a_file_and_a_plot(tmp_path, capsys):
    assert main(["kernels", "--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "kernels.csv").read_text().splitlines()
    assert lines[0].split(",") == list(kernels.FIELDS)
    assert len(lines) == 5
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
    assert "kernels.png" in reported(capsys)


def test_sizes_that_do_not_fit_are_left_out(monkeypatch):
    monkeypatch.setattr(kernels, "available_bytes", lambda device: 100_000)
    assert [line["P"] for line in kernels.measure([2], [1000, 1_000_000], rounds=1)] == [1000]


def test_capture_prints_its_table(capsys):
    assert main(["capture", "--quick", "--rounds", "1"]) == 0
    out = reported(capsys)
    assert all(way in out for way in capture.WAYS)


def test_weights_are_compared(capsys):
    assert main(["weights", "--quick", "--rounds", "1"]) == 0
    out = reported(capsys)
    assert all(member.title in out for member in FAMILY.values())
    assert "operators here" in out


def test_a_peer_that_fails_leaves_ours(monkeypatch):
    def failing(gram):
        raise RuntimeError("not on\nthis device")

    member = replace(FAMILY["mgda"], peer=lambda num_tasks: failing)
    monkeypatch.setattr(weights, "FAMILY", {"mgda": member})
    (line,) = weights.compare((3,), rounds=1)[2:-1]
    assert "| failed: not on this device |" in line


def test_what_is_launched_is_counted():
    gram = torch.eye(3, dtype=torch.float64)
    # a product, a sum and a copy; the view and the transposition launch nothing
    assert launches.count_launches(lambda: (gram @ gram.mT).view(-1).sum().clone(), "cpu") == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_launched_on_cuda_is_counted():
    gram = torch.eye(3, dtype=torch.float64, device="cuda")
    assert launches.count_launches(lambda: (gram + 1).mul(2), "cuda") == 2
    assert launches.count_waits(lambda: gram + 1) == 0
    assert launches.count_waits(lambda: (gram + 1).sum().item()) == 1


def test_combining_inside_the_update_is_compared(capsys):
    assert main(["adamw", "--quick", "--rounds", "1"]) == 0
    out = reported(capsys)
    assert all(out.count(way) == 2 for way in adamw.WAYS)
    assert "T=3; 1 rounds" in out


@pytest.mark.parametrize("way", adamw.WAYS)
def test_an_update_with_another_gradient_is_not_timed(way):
    rows, weights = torch.randn(3, 1000), torch.ones(3)
    first = adamw.CombineFirst(rows, weights)
    adamw.check({"first": first, way: adamw.WAYS[way](rows, weights)})
    with pytest.raises(WrongAnswerError, match="parameters must be those"):
        adamw.check({"first": adamw.CombineFirst(rows, weights), way: first})


# The trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny BERT with a vocabulary of letters."""
    folder = tmp_path_factory.mktemp("checkpoint")
    letters = [chr(ord("a") + number) for number in range(26)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=12, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def test_both_trainers_see_the_same_examples(checkpoint, monkeypatch):
    seen = {"plain": [], "ours": []}
    plain_encode, our_forward = trainer.PlainTrainer.encode, trainer.MultiTaskModel.forward

    def encode(self, examples):
        seen["plain"].append(len(examples))
        return plain_encode(self, examples)

    def forward(self, batch):
        seen["ours"].append(len(batch))
        return our_forward(self, batch)

    monkeypatch.setattr(trainer.PlainTrainer, "encode", encode)
    monkeypatch.setattr(trainer.MultiTaskModel, "forward", forward)
    sizes = trainer.Sizes(steps=2, batch_size=3, eval_batches=2, eval_batch_size=4)
    timings, numbers, _ = trainer.compare("synthetic", checkpoint, sizes=sizes, rounds=1)
    assert numbers == {"training": 18, "evaluation": 24}
    assert len(timings.seconds) == 8
    turns = 2 * 2  # a round of warm-up and one that counts, in two precisions
    assert sum(seen["ours"]) == turns * 42
    assert sum(seen["plain"]) == turns * 42 + 8  # and the sentences of the check


def test_trainers_that_disagree_are_not_timed(checkpoint, monkeypatch):
    original = trainer.PlainTrainer.encode
    monkeypatch.setattr(
        trainer.PlainTrainer, "encode", lambda self, examples: original(self, examples) * 1.01
    )
    with pytest.raises(WrongAnswerError, match="encoder: must give what transformers' gives"):
        trainer.compare("synthetic", checkpoint, sizes=trainer.Sizes(1, 2, 1, 2), rounds=1)


def test_the_trainers_rows_are_drawn(checkpoint, capsys):
    arguments = ["--data", "synthetic", "--encoder", str(checkpoint), "--quick", "--rounds", "1"]
    assert main(["trainer", *arguments]) == 0
    out = reported(capsys)
    assert out.count("samples/s)") == 8
    assert "tokenized them once" in out
    assert out.count("were made once in") == 2


def test_upper_layers_train_as_above_layers_made_each_time(checkpoint):
    sizes = trainer.Sizes(steps=2, batch_size=3, eval_batches=2, eval_batch_size=4)
    train, dev = trainer.some_examples("synthetic", sizes, seed=0)
    kept, made = (trainer.OurTrainer(checkpoint, train, dev, sizes, 0, 2) for _ in range(2))
    kept.model.kept = frozen.KeptOutputs()
    assert frozen.make_outputs(kept, "fp32") > 0
    assert kept.recipe.frozen_layers == 1
    num_bytes = kept.model.kept.num_bytes
    frozen.check_outputs(kept)
    for each in (kept, made):
        torch.manual_seed(1)
        each.train(trainer.PRECISIONS["fp32"])
    assert 0 < kept.model.kept.num_bytes == num_bytes  # all had been made before
    for ours, theirs in zip(kept.model.parameters(), made.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_kept_outputs_that_are_wrong_are_not_timed(checkpoint, monkeypatch):
    original = frozen.KeptOutputs.of
    monkeypatch.setattr(frozen.KeptOutputs, "of", lambda *given: original(*given).roll(1, -1))
    with pytest.raises(WrongAnswerError, match="kept outputs: must lead to what all layers give"):
        frozen.compare("synthetic", checkpoint, sizes=trainer.Sizes(1, 2, 1, 2), rounds=1)


# The classes of asv


@pytest.mark.parametrize("kind", [bench_steps.Steps, bench_steps.Ratios, bench_steps.Costs])
def test_asv_runs_steps(kind, monkeypatch):
    benchmark = kind()
    benchmark.setup(2, 2000, "pcgrad")
    for name in dir(kind):
        if name.startswith(("time_", "track_", "peakmem_")):
            result = getattr(benchmark, name)(2, 2000, "pcgrad")
            assert result is None or result > 0
    if kind is not bench_steps.Costs:  # which times nothing
        monkeypatch.setitem(METHODS, "pcgrad", WRONG["Halved"])
        with pytest.raises(WrongAnswerError):
            kind().setup(2, 2000, "pcgrad")


def test_asv_runs_the_encoder(monkeypatch):
    monkeypatch.setattr(bench_steps, "MINILM", TINY)
    benchmark = bench_steps.MiniLM()
    benchmark.setup("loss-sum")
    benchmark.time_step("loss-sum")


def test_asv_runs_kernels():
    for kind in (bench_kernels.Kernels, bench_kernels.Surgery):
        benchmark = kind()
        benchmark.setup(2, 2000)
        for name in dir(kind):
            if name.startswith(("time_", "track_")):
                result = getattr(benchmark, name)(2, 2000)
                assert result is None or result > 0
    for name in FAMILY:
        benchmark = bench_kernels.Weights()
        benchmark.setup(3, name)
        benchmark.time_weights(3, name)


def test_no_other_name_looks_like_a_benchmark_to_asv():
    prefixes = ("time_", "timeraw_", "track_", "mem_", "peakmem_")
    for path in Path(table.__file__).parent.glob("*.py"):
        if path.stem.startswith("bench_"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert not node.name.startswith(prefixes), f"{path.name}: {node.name}"
