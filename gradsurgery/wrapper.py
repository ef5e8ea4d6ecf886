"""The wrapper that keeps each task's gradient apart until one update is made of them all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import attached, kernels
from gradsurgery.arguments import Shared, check_choice, check_integer
from gradsurgery.blocks import TaskBlocks
from gradsurgery.buffer import GradientBuffer
from gradsurgery.distributed import AveragedBuffer
from gradsurgery.features import FeatureGradients, check_features
from gradsurgery.losses import GivenLosses
from gradsurgery.nonfinite import OnNonfinite, drop_tasks, drop_unless
from gradsurgery.places import picked
from gradsurgery.replicas import Replicas
from gradsurgery.rows import Units
from gradsurgery.shards import is_spread
from gradsurgery.stateful import state_of, take_back
from gradsurgery.step import Clock

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Weighting = Callable[[Tensor], Tensor]
Granularity = Literal["model", "group", "tensor"]


class MultiTaskOptimizer(TaskBlocks):
    r"""Any gradient surgery that is a function of the Gram matrix, around any optimizer.

    .. math:: u = \sum_t w_t\, g_t, \qquad w = \mathrm{weighting}(G), \quad G_{ij} = g_i \cdot g_j

    over the parameters that two or more tasks reached; a parameter that one task alone reached
    keeps its plain gradient. ``param_groups``, ``state`` and ``defaults`` are those of ``base``.

    Args:
        base: the optimizer that takes the step.
        weighting: ``gram [T, T] -> weights [T]``, T being the tasks of this step, in the order in
            which they were first named: where one is absent, ``gram`` is smaller. What it keeps
            from call to call is saved and resumed if it has ``state_dict`` and ``load_state_dict``.
        tasks: the names that :meth:`task` admits; by default every new name is a new task.
        reduction: ``"sum"``, or ``"mean"`` for the sum over the shared parameters divided by T.
        scope: ``"shared"``, or ``"all"`` to let every parameter into the Gram matrix and the
            weights, task-specific ones included, as older implementations do.
        shared: the parameters, or modules of them, that may count as shared; every other parameter
            keeps its plain gradient, whichever tasks reach it. By default all may. Declare them
            where the graph cannot tell: where autograd sends zeros to another task's head, as it
            does from a block's loss of one column of outputs that were concatenated.
        granularity: what is weighted as a whole: the ``"model"``, each parameter ``"group"`` of
            ``base``, or each ``"tensor"``.
        seed: of the random choices, where the weighting makes any.
        on_nonfinite: what a gradient with NaN or infinity in it leads to: ``"propagate"`` makes the
            update non-finite too, which ``GradScaler`` relies on; ``"skip_task"`` makes the
            gradient zero; ``"skip_step"`` leaves the step out, and ``"raise"`` raises, both of
            which read a number from the device. All but the first cost one more read of every
            gradient, and ``diagnostics`` counts what they met. With a ``process_group`` all
            processes do so when a gradient on any of them is not finite, at the end of the step's
            blocks, in :meth:`surgery`; ``"skip_task"`` then keeps the tasks' gradients apart.
        buffer_dtype: type in which the tasks' gradients are kept; that of the gradients by default.
        fused: ``None`` takes the best kernels there are, ``False`` the reference, ``True`` insists.
        process_group: processes that hold the same parameters and each have examples of their own;
            surgery is then that of the gradients' mean over them. It replaces the averaging of
            ``DistributedDataParallel``, and every process must call :meth:`surgery` and
            :meth:`step` equally often. Not for sharded parameters, which need nothing.
        warn: whether to warn, once each, of a step on gradients that had not two tasks, and so no
            surgery; of a new task after many steps without one, where ``tasks`` are not declared;
            and of ``.grad`` being read while the tasks' gradients are kept apart.

    Raises:
        TypeError: ``base`` is not an optimizer, ``weighting`` cannot be called, or
            ``process_group`` is none.
        ValueError: ``base`` has no parameters, an option is none of its choices, ``tasks`` names a
            task twice, or ``process_group`` comes without ``tasks`` or with sharded parameters.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = MultiTaskOptimizer(base, lambda gram: 1 / gram.diagonal().sqrt())
        >>> for name, inputs in {"a": torch.ones(3, 2), "b": torch.zeros(3, 2)}.items():
        ...     with optimizer.task(name):
        ...         model(inputs).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        base: Optimizer,
        weighting: Weighting,
        *,
        tasks: Iterable[Hashable] | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        scope: Literal["shared", "all"] = "shared",
        shared: Shared | None = None,
        granularity: Granularity = "model",
        seed: int = 0,
        on_nonfinite: OnNonfinite = "propagate",
        buffer_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
        warn: bool = True,
    ) -> None:
        super().__init__(base, tasks, shared, on_nonfinite, buffer_dtype, process_group, warn)
        if not callable(weighting):
            raise TypeError(
                f"weighting: must be a callable gram -> weights, got {type(weighting).__name__}"
            )
        check_choice("reduction", reduction, ("sum", "mean"))
        check_choice("scope", scope, ("shared", "all"))
        if shared is not None and scope == "all":
            raise ValueError('shared: must be left out where scope="all"; choose one of the two')
        check_choice("granularity", granularity, ("model", "group", "tensor"))
        kernels.choose(fused)
        self.weighting = weighting
        self.reduction = reduction
        self.scope = scope
        self.granularity = granularity
        self.fused = fused
        self._clock = Clock(check_integer("seed", seed))
        state_of(weighting)  # refused now rather than when it is saved
        self._watched: dict[str, list[Tensor]] = {}  # parameters by a name of the group

    @property
    def seed(self) -> int:
        return self._clock.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._clock.seed = check_integer("seed", seed)

    def feature_backward(
        self,
        losses: GivenLosses,
        features: Tensor | Sequence[Tensor],
        retain_graph: bool = False,
    ) -> None:
        """Surgery on the gradient of a representation that the losses share, for the price of the
        loss sum: every loss goes back to the features, their combined gradient alone goes on.

        It is another method, not a faster :meth:`backward`: a conflict is one between the tasks'
        gradients of the features, not of the parameters, and the two agree in sign only where the
        trunk below keeps angles. It needs losses of the *same* inputs; where each task has its own
        examples, :meth:`backward` costs no more than the loss sum. What lies beyond the features,
        such as heads, keeps its plain gradient.

        The features are a cut through the graph, and the first of them on a path from a loss is
        the one whose gradient the path counts for; they may be made of one another, like feature
        maps of several scales. A path that meets none, such as a skip connection, tied weights or a
        penalty on the trunk, gives its plain gradient; where it ends in the trunk, each loss goes
        back along it by itself. With weights of one every parameter gets the loss sum's gradient.

        Hooks of features and parameters, and gradients retained on features, get the total once;
        hooks elsewhere may see it in parts, as in :meth:`backward`.

        Args:
            losses: as in :meth:`backward`, without a generator.
            features: the shared representation, or several tensors that make it up, on one device;
                a complex number counts as two. One that no loss depends on gets nothing.
            retain_graph: keep the graph; by default it is freed.

        Raises:
            TypeError: a loss or a feature is not a tensor.
            ValueError: as :meth:`backward`; or a feature needs no gradient or is not dense, they
                are on several devices, no loss depends on any of them, a reentrant checkpoint
                follows, a task is missing where there is a process group, or parameters are
                sharded.

        Example:
            >>> trunk, heads = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
            >>> parameters = [*trunk.parameters(), *heads.parameters()]
            >>> optimizer = MultiTaskOptimizer(torch.optim.SGD(parameters, lr=0.1), torch.diagonal)
            >>> features = trunk(torch.ones(5, 4))
            >>> optimizer.feature_backward(heads(features).mean(0).unbind(), features)
            >>> optimizer.step()

        Source: Ozan Sener and Vladlen Koltun, "Multi-Task Learning as Multi-Objective
        Optimization", 2018, section 3.3, take the same short cut for another method.
        """
        step = self._step
        step.check_closed("feature_backward()")
        shared = [features] if isinstance(features, Tensor) else list(features)
        check_features(shared)
        with step.all_or_nothing(list(self._parameters()), self._tasks):
            given = self._named(losses)
            self._check_features_everywhere(given)
            handling = step.handling or self._handling_to_begin()
            if handling == "plain":
                self._backward_given(given, retain_graph)
            else:
                step.handling = handling
                step.averaged.clear()
                self._backward_features(given, shared, retain_graph)

    @torch.no_grad()
    def surgery(self) -> None:
        """Makes one gradient of the tasks' and adds it to ``.grad``; :meth:`step` does it for you.

        Call it where something must see the combined gradient before the step: gradient clipping,
        ``GradScaler.unscale_`` and ``GradScaler.step``. Without gradients kept apart it does
        nothing.

        Raises:
            FloatingPointError: where there is a ``process_group`` and ``on_nonfinite`` is
                ``"raise"``, on every process and until :meth:`zero_grad`: a task's gradient is not
                finite on one of them.
        """
        self._step.check_closed("surgery()")
        self._step.seal.lift()
        self._witness.looks_outside(self._parameters())
        if self._replicas is None:
            self._operate(self._step.buffer)
        else:
            mean = self._average(self._replicas)
            try:
                self._operate(mean)
            finally:
                mean.clear()

    def step(self, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        """Performs surgery on what is still kept apart, then the base optimizer's step.

        Without any gradient nothing happens, as with every optimizer of torch. A step counts, for
        ``every``, ``start_step`` and the random orders, if a task block or :meth:`backward`
        belonged to it.

        Args:
            closure: computes the gradients (with task blocks or :meth:`backward`) and returns the
                loss, for optimizers that evaluate it themselves, once or more often. Gradients made
                before are combined first, where such an optimizer expects them.
            options: what else the base optimizer's ``step`` takes.

        Raises:
            ValueError: inside a task block, or with a closure where ``on_nonfinite`` is
                ``"skip_step"``.
        """
        step = self._step
        step.check_closed("step()")
        if self.on_nonfinite == "skip_step":
            if closure is not None:
                raise ValueError(
                    'step(): must be called without a closure where on_nonfinite="skip_step", '
                    "because the base optimizer would go on; choose another on_nonfinite"
                )
            if self._guard.must_skip(self._flags()):
                self.zero_grad()
                self.diagnostics.num_skipped_steps += 1
                return None
        self.surgery()
        step.counts = step.handling is not None
        if closure is None:
            self._testify()
        with step.second_order_explained(self.base, even_without_graph=closure is None):
            result = self._step_base(closure, self._with_surgery, **options)
        if step.counts:
            self._clock.tick()
        step.end()
        self._witness.end()
        return result

    def _with_surgery(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """A closure after which ``.grad`` holds the combined gradient."""

        def evaluate() -> Any:
            # The base optimizer may have replaced what was averaged over processes.
            self._step.averaged.clear()
            loss = closure()
            self.surgery()
            self._testify()
            self._step.counts |= self._step.handling is not None
            return loss

        return evaluate

    def watch(self, groups: Mapping[str, Iterable[Tensor]]) -> None:
        """Lets the diagnostics tell conflicts in groups of parameters apart, such as layers.

        Each group costs one more pass over its gradients in every surgery from now on; an empty
        mapping ends it.

        Args:
            groups: parameters by a name of the group; a parameter may be in several.

        Raises:
            TypeError: a name is not a ``str``, or a group holds something else than tensors.
            ValueError: the optimizer holds no such parameter; raised by :meth:`surgery` where it
                was given up or exchanged since.

        Example:
            >>> model = torch.nn.ModuleDict({"trunk": torch.nn.Linear(2, 1)})
            >>> optimizer = MultiTaskOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), len)
            >>> optimizer.watch({name: part.parameters() for name, part in model.items()})
        """
        watched = {}
        for name, parameters in groups.items():
            watched[name] = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            if not isinstance(name, str):
                raise TypeError(f"groups: must be named by strs, got {name!r}; name the group")
            for parameter in watched[name]:
                if not isinstance(parameter, Tensor):
                    raise TypeError(
                        f"groups: must hold parameters, got {type(parameter).__name__} in "
                        f"{name!r}; give it module.parameters()"
                    )
        self._check_watched(watched)
        self._watched.clear()
        self._watched.update(watched)

    def _check_watched(self, watched: Mapping[str, Sequence[Tensor]]) -> None:
        held = set(self._parameters()) if watched else set()
        for name, parameters in watched.items():
            for parameter in parameters:
                if parameter not in held:
                    raise ValueError(
                        f"groups: must hold parameters of this optimizer, got one of shape "
                        f"{tuple(parameter.shape)} in {name!r} that it does not have; call watch() "
                        "with its own, or add_param_group() first"
                    )

    # What the methods differ in.

    def _weigh(
        self,
        grams: Tensor,  # [S, T, T]
        of_tasks: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:  # [S, T], [S, T, T]
        """Weights of the tasks of this step, numbered by ``of_tasks``, in each unit; and of a
        method that projects each gradient, what the projections are made of."""
        return torch.stack([self._weigh_one(gram, of_tasks) for gram in grams]), None

    def _weigh_one(self, gram: Tensor, of_tasks: Sequence[int]) -> Tensor:  # [T, T] -> [T]
        num_tasks, present = len(of_tasks), set(of_tasks)
        absent = [name for i, name in enumerate(self._tasks.names) if i not in present]
        try:
            weights = self.weighting(gram)
        except (ValueError, RuntimeError, IndexError) as error:
            if not absent or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            said = " ".join(str(error).split())
            raise ValueError(
                f"weighting: must take the Gram matrix of a step without the tasks {absent}, got "
                f"{type(error).__name__} ({said}); give every task a loss, or take a weighting for "
                "any number of tasks"
            ) from error
        if not isinstance(weights, Tensor):
            raise TypeError(f"weighting: must return a tensor, got {type(weights).__name__}")
        if weights.shape != (num_tasks,):
            raise ValueError(
                f"weighting: must return {num_tasks} weights for a Gram matrix of "
                f"{num_tasks} tasks, got shape {tuple(weights.shape)}"
                + (f"; the tasks {absent} are absent in this step" if absent else "")
            )
        return weights.detach().to(gram.device, gram.dtype, non_blocking=True)

    def _write(self, buffer: GradientBuffer, units: Units, weights: Tensor) -> None:  # [S, T]
        """Adds the combined gradient to ``.grad``; weights are by slot."""
        attached.add(
            buffer.combine(
                self._kernels(buffer.touched()).combine_segments,
                units,
                weights / weights.shape[-1] if self.reduction == "mean" else weights,
                weights if self.scope == "all" else None,
            )
        )

    def _own_state(self) -> dict[str, Any]:
        places = {parameter: place for place, parameter in enumerate(self._parameters())}
        in_rows, num_rows = self._step.buffer.layout()
        weighting = state_of(self.weighting)
        return {
            **({} if weighting is None else {"weighting": weighting}),
            "tasks": list(self._tasks.names),
            "seed": self.seed,
            "num_steps": self._clock.read(),
            "in_rows": [places[parameter] for parameter in in_rows if parameter in places],
            "num_rows": num_rows,
            "diagnostics": self.diagnostics.state_dict(),
        }

    def _check_own_state(self, own: Mapping[str, Any]) -> None:
        self._tasks.check_saved(own["tasks"])
        check_integer("state_dict", own["seed"])
        if "weighting" in own and state_of(self.weighting) is not None:
            try:
                take_back(copy.deepcopy(self.weighting), own["weighting"])
            except Exception as error:
                said = " ".join(str(error).split())
                raise ValueError(
                    f"state_dict: must be of an equal weighting, found another ({said}); make the "
                    "optimizer with the weighting that the checkpoint was made with"
                ) from error

    def _load_own_state(self, own: Mapping[str, Any] | None) -> None:
        self._step.forget()
        self._witness.forget()
        if self._replicas is not None:
            self._replicas.ask_again()
        if own is None:
            return
        self._tasks.restore([self._tasks.check(name) for name in own["tasks"]])
        self._clock.restore(check_integer("state_dict", own["seed"]), own["num_steps"])
        if "weighting" in own and state_of(self.weighting) is not None:
            take_back(self.weighting, own["weighting"])
        parameters = list(self._parameters())
        in_rows = [parameters[place] for place in own["in_rows"]]
        self._step.buffer.restore(in_rows, own["num_rows"])
        self.diagnostics.load_state_dict(own["diagnostics"], parameters[0].device)

    # What they have in common.

    def _operate(self, buffer: GradientBuffer) -> None:
        """Surgery on what a buffer keeps, which then is empty."""
        if not buffer.touched():
            buffer.clear()
            return
        self._check_watched(self._watched)
        of_tasks = sorted(buffer.slots)
        names = [self._tasks.names[task] for task in of_tasks]
        self._witness.saw(names)
        chosen = self._kernels(buffer.touched())
        buffer.settle()
        units = self._units(buffer)
        grams = buffer.grams(chosen.gram_matrices, units, alone=self.scope == "all")
        grams = _by_task(grams, buffer)
        weights, coefficients = self._weigh(grams, of_tasks)
        watched = None
        if self._watched:
            groups = Units(self._watched.values())
            watched = _by_task(buffer.grams(chosen.gram_matrices, groups, alone=False), buffer)
        self.diagnostics.record(names, of_tasks, self._tasks.names, grams, weights, coefficients)
        self.diagnostics.record_groups(tuple(self._watched), watched)
        if self._step.handling == "apart":
            place = {task: place for place, task in enumerate(of_tasks)}
            by_slot = [place[task] for task in buffer.slots]
            self._write(buffer, units, picked(weights.T, by_slot).T)
        buffer.clear()

    def _average(self, replicas: Replicas) -> AveragedBuffer:
        """The mean over the replicas of what each keeps; that of ``.grad`` comes into its place."""
        step, parameters = self._step, list(self._parameters())
        options = (
            *(self.seed, self.reduction, self.scope, self.granularity, self._clock.num_steps),
            self.shared and [place for place, p in enumerate(parameters) if p in self.shared],
        )
        shapes = [(tuple(p.shape), p.dtype) for p in parameters]
        replicas.check_alike((self._tasks.names, options, shapes))
        # A process without a block in this step has not yet asked.
        handling = step.handling or self._handling_to_begin()
        present = [p for p in parameters if p.grad is not None and p not in step.averaged]
        flags = self._flags() if self._guard.asks else None
        begun = step.handling is not None
        agreed = replicas.agree(parameters, len(self._tasks), step.buffer, present, flags, begun)
        step.handling = handling if agreed.begun else None
        if flags is not None:
            self._guard.act(agreed.failed)
            step.failed.clear()
            drop_tasks(agreed.failed_tasks, step.buffer)
        outside = attached.take_over(agreed.outside)
        with_outside, tasks_of = set(agreed.outside), agreed.tasks_of
        if handling == "held":
            self._release(outside)
            with_outside.update(parameter for parameter, by in tasks_of.items() if by)
            tasks_of = tasks_of if self._watches() else {}
        mean = AveragedBuffer(
            step.buffer,
            tasks_of,
            {p: outside.get(p) for p in parameters if p in with_outside},
            self.scope == "all",
            replicas.group,
        )
        attached.add(mean.outside)
        step.averaged.update(parameters)
        return mean

    def _testify(self) -> None:
        """Warns, once, before a step on gradients of fewer than two tasks."""
        # Of what is added to `.grad` at once a process does not know the tasks of the others.
        if self._replicas is None or self._step.handling == "apart":
            self._witness.testify(self._parameters())

    def _units(self, buffer: GradientBuffer) -> Units:
        """Which parameters the method looks at together."""
        if self.granularity == "group":
            return Units(group["params"] for group in self.base.param_groups)
        if self.granularity == "tensor":
            kept = set(buffer.touched() if self.scope == "all" else buffer.shared())
            if kept:
                return Units([parameter] for parameter in self._parameters() if parameter in kept)
        return Units()

    def _kernels(self, reached: Iterable[Tensor]) -> ModuleType:
        return kernels.choose(self.fused, *{tensor.device for tensor in reached})

    def _backward_features(
        self, losses: Mapping[Hashable, Tensor], features: Sequence[Tensor], retain_graph: bool
    ) -> None:
        by_task = sorted((self._tasks.number(name), loss) for name, loss in losses.items())
        of_tasks = [task for task, _ in by_task]
        drops = self.on_nonfinite == "skip_task"
        self._witness.saw(list(losses))
        found = FeatureGradients([loss for _, loss in by_task], features, retain_graph, copy=drops)
        names = [self._tasks.names[task] for task in of_tasks]
        with torch.no_grad():
            for place, task in enumerate(of_tasks):
                if self._guard.looks:
                    attached.check_dense(names[place], found.heads[place])
                self._look(task, found.of(place))
            chosen = self._kernels(features)
            gram = chosen.gram_matrix(found.grads)
            if self._replicas is not None:
                flags = self._flags() if self._guard.asks else None
                gram, failed = self._replicas.mean_gram(gram, flags)
                if failed is not None:
                    self._guard.act(failed)
                    self._step.failed.clear()
                    for place in range(len(of_tasks)):
                        drop_unless(~failed[place], found.of(place))
            weights, coefficients = self._weigh(gram[None], of_tasks)
            mixed = weights[0] / len(of_tasks) if self.reduction == "mean" else weights[0]
            update = chosen.combine(mixed, found.grads, found.grads[0])
        for place, task in enumerate(of_tasks):
            found.scale_heads(place, self._loss_weight(task))
        found.back_propagate(update, retain_graph)
        self.diagnostics.record(
            names, of_tasks, self._tasks.names, gram[None], weights, coefficients
        )
        self.diagnostics.record_groups((), None)

    def _check_features_everywhere(self, losses: Mapping[Hashable, Tensor]) -> None:
        if any(is_spread(parameter) for parameter in self._parameters()):
            raise ValueError(
                "feature_backward(): must have parameters that are not sharded; use backward()"
            )
        if self._replicas is not None and set(losses) != set(self._tasks.names):
            raise ValueError(
                f"losses: must be one for each of the tasks {self._tasks.names} where there is a "
                f"process_group, got those of {list(losses)}; use backward() when a task is absent"
            )


def _by_task(grams: Tensor, buffer: GradientBuffer) -> Tensor:  # [S, T, T]
    """Gram matrices of a buffer's slots as those of its tasks, in their order."""
    slots = [slot for _, slot in sorted(buffer.slots.items())]
    if slots == list(range(len(slots))):
        return grams
    return picked(picked(grams.permute(1, 2, 0), slots).transpose(0, 1), slots).permute(2, 1, 0)
