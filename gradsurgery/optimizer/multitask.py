"""The optimizer that users call: tasks' gradients apart until one update is made of all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.arguments import (
    Shared,
    check_choice,
    check_floating,
    check_integer,
    parameters_in,
)
from gradsurgery.diagnostics import Diagnostics
from gradsurgery.distributed.replicas import Replicas, check_group
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.method import FromGram, Method, Weighting
from gradsurgery.optimizer.features import check_features
from gradsurgery.optimizer.gathering import Gathering
from gradsurgery.optimizer.losses import GivenLosses, Losses, check_one_list
from gradsurgery.optimizer.nonfinite import Guard, OnNonfinite
from gradsurgery.optimizer.proxy import Proxy, delegated
from gradsurgery.optimizer.seal import Seal
from gradsurgery.optimizer.step import Step
from gradsurgery.optimizer.surgery import Granularity, Surgery
from gradsurgery.optimizer.task_block import TaskBlock
from gradsurgery.optimizer.tasks import Tasks
from gradsurgery.optimizer.witness import Witness

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MultiTaskOptimizer(Proxy):
    r"""Any method that makes one gradient of the tasks', around any optimizer.

    .. math:: u = \sum_t w_t\, g_t, \qquad w = \mathrm{weighting}(G), \quad G_{ij} = g_i \cdot g_j

    over the parameters that two or more tasks reached; a parameter that one task alone reached
    keeps its plain gradient. ``param_groups``, ``state`` and ``defaults`` are those of ``base``.

    Args:
        base: the optimizer that takes the step.
        weighting: a :class:`gradsurgery.Method`, or ``gram [T, T] -> weights [T]``, T being the
            tasks of this step, in the order in which they were first named: where one is absent,
            ``gram`` is smaller. What it keeps from call to call is saved and resumed if it has
            ``state_dict`` and ``load_state_dict``.
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
        seed: of the random choices, where the method makes any.
        every: surgery in every ``every``-th step; the steps between use the last weights as weights
            of the losses on the shared parameters, at the price of the plain sum.
        start_step: steps of plain loss sum before the first surgery, whatever the reduction.
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
        monitor: gather the diagnostics of conflicts for a method that keeps no gradients apart.
        warn: whether to warn, once each, of a step on gradients that had not two tasks, and so no
            surgery; of a new task after many steps without one, where ``tasks`` are not declared;
            of a block after ``.grad`` was read, and so surgery performed, in the same step; and of
            ``.grad`` being read before a surgery that takes all processes.

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
        weighting: Method | Weighting,
        *,
        tasks: Iterable[Hashable] | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        scope: Literal["shared", "all"] = "shared",
        shared: Shared | None = None,
        granularity: Granularity = "model",
        seed: int = 0,
        every: int = 1,
        start_step: int = 0,
        on_nonfinite: OnNonfinite = "propagate",
        buffer_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
        monitor: bool = False,
        warn: bool = True,
    ) -> None:
        super().__init__(base)
        check_choice("on_nonfinite", on_nonfinite, ("propagate", "raise", "skip_task", "skip_step"))
        check_floating("buffer_dtype", buffer_dtype)
        declared = None if tasks is None else list(tasks)
        self._witness = Witness(type(self).__name__, warn, declared)
        self._tasks = Tasks(declared, self._witness.met_new)
        self.shared = None if shared is None else parameters_in("shared", shared, base)
        if shared is not None and scope == "all":
            raise ValueError('shared: must be left out where scope="all"; choose one of the two')
        if self.shared is not None and process_group is not None and on_nonfinite == "skip_task":
            raise ValueError(
                'on_nonfinite: must not be "skip_task" where there are shared= and process_group=; '
                'choose "skip_step"'
            )
        if process_group is not None:
            check_group(process_group, self._parameters(), self._tasks.names)
        self.process_group = process_group
        self.diagnostics = Diagnostics()
        self._surgery = Surgery(
            base,
            weighting if isinstance(weighting, Method) else FromGram(weighting),
            self._tasks,
            self.diagnostics,
            reduction=reduction,
            scope=scope,
            granularity=granularity,
            seed=seed,
            every=every,
            start_step=start_step,
            fused=fused,
            monitor=monitor,
        )
        seal = Seal(
            self.surgery, self._witness.found_early, speaks=warn, is_alone=process_group is None
        )
        self._step = Step(GradientBuffer(buffer_dtype), seal)
        self._replicas = None if process_group is None else Replicas(process_group)
        self._guard = Guard(on_nonfinite, self._tasks, self.diagnostics, self._replicas)
        self._gathering = Gathering(
            self._parameters,
            self._tasks,
            self._step,
            self._surgery,
            self._guard,
            self._replicas,
            self._witness,
            self.shared,
        )

    on_nonfinite = delegated("_guard", "choice")
    reduction = delegated("_surgery", "reduction")
    scope = delegated("_surgery", "scope")
    granularity = delegated("_surgery", "granularity")
    fused = delegated("_surgery", "fused")
    every = delegated("_surgery", "every")
    start_step = delegated("_surgery", "start_step")
    monitor = delegated("_surgery", "monitor")

    @property
    def seed(self) -> int:
        """Seed of the random choices, which depend on the step besides."""
        return self._surgery.clock.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._surgery.clock.seed = check_integer("seed", seed)

    @property
    def weighting(self) -> Method | Weighting:
        """Method or callable that makes weights of the tasks' gradients."""
        method = self._surgery.method
        return method.weighting if isinstance(method, FromGram) else method

    @property
    def tasks(self) -> tuple[Hashable, ...]:
        """Names of the tasks, those declared or those met so far."""
        return tuple(self._tasks.names)

    def task(self, name: Hashable) -> AbstractContextManager[TaskBlock]:
        """Attributes every gradient made inside the block to one task.

        Any number of backwards may run in it, and any number of blocks of one task in a step: they
        add up. A block left by an exception counts for nothing, except in a plain loss sum, where
        autograd itself adds to ``.grad``.

        Args:
            name: the task: a ``str``, a number, ``None``, or a tuple of such, or what equals one of
                them, such as numpy's and a member of a ``str`` Enum.

        Raises:
            TypeError: a name of another type, which a checkpoint could not be read with.
            ValueError: an unknown name, a block inside another, or a sparse gradient.
            RuntimeError: a backward through a graph that the block of another task has freed.
            FloatingPointError: a gradient that is not finite, where ``on_nonfinite`` is ``"raise"``
                and there is no ``process_group``.
        """
        self._witness.asked()
        return self._gathering.block(name)

    def backward(self, losses: Losses, retain_graph: bool | None = None, *further: object) -> None:
        """Back-propagates one loss for each task and adds the combined gradient to ``.grad``.

        Losses that were put into one tensor and taken out again, as by ``torch.stack(losses)``, and
        losses of the columns of heads' outputs that ``torch.cat`` put together, reach what each of
        them depends on, and no other task's head. This is read from the graph near the losses;
        where it does not show there, and in blocks, declare the shared parameters with ``shared=``.

        Args:
            losses: a sequence or another collection in the order of ``tasks`` with a loss for each
                of them, a tensor ``[T]`` of them, a mapping of task names to losses, or a generator
                of losses or of ``(name, loss)`` pairs. A generator is asked for the next loss after
                the last one's backward, so that one graph is alive at a time.
            retain_graph: as in ``Tensor.backward``. By default the graph is kept between the losses
                of a sequence or mapping, which may share it, and freed by each loss of a generator.
            further: nothing; losses that come one by one instead of in a list are refused.

        Raises:
            TypeError: a loss is not a tensor, or the losses are not in one collection.
            ValueError: a loss is not a scalar or needs no gradient, their number is not that of the
                declared tasks, or there is none.

        Example:
            >>> from gradsurgery import PCGrad
            >>> trunk, heads = torch.nn.Linear(2, 3), [torch.nn.Linear(3, 1) for _ in range(2)]
            >>> parameters = [p for part in (trunk, *heads) for p in part.parameters()]
            >>> optimizer = PCGrad(torch.optim.SGD(parameters, lr=0.1))
            >>> hidden = trunk(torch.ones(4, 2))
            >>> optimizer.backward(torch.stack([head(hidden).mean() for head in heads]))
            >>> optimizer.tasks
            (0, 1)
        """
        self._step.check_closed("backward()")
        check_one_list(losses, retain_graph, *further)
        with self._step.all_or_nothing(list(self._parameters()), self._tasks):
            self._gathering.backward_all(losses, retain_graph)
        self.surgery()

    def pc_backward(
        self, losses: Losses, retain_graph: bool | None = None, *further: object
    ) -> None:
        """Does what :meth:`backward` does, but replaces ``.grad`` instead of adding to it, as
        Pytorch-PCGrad and pytorch_optimizer do; a training loop then needs no ``zero_grad()``.

        Gradients that blocks have kept apart are replaced too, and ``.grad`` of a parameter that no
        loss reaches becomes ``None``. After an error all gradients are as before.

        Args:
            losses, retain_graph, further: as in :meth:`backward`.

        Raises:
            TypeError, ValueError: as :meth:`backward`.
        """
        self._step.check_closed("pc_backward()")
        check_one_list(losses, retain_graph, *further)
        with self._step.all_or_nothing(list(self._parameters()), self._tasks, replace=True):
            self._gathering.backward_all(losses, retain_graph)
            self.surgery()

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
        self._step.check_closed("feature_backward()")
        shared = [features] if isinstance(features, Tensor) else list(features)
        check_features(shared)
        with self._step.all_or_nothing(list(self._parameters()), self._tasks):
            self._gathering.backward_to_features(losses, shared, retain_graph)
        self._step.seal.lay(self._step.buffer, self._step.handling)

    @torch.no_grad()
    def surgery(self) -> None:
        """Makes one gradient of the tasks' and adds it to ``.grad``; :meth:`step` does it for you.

        Whatever uses ``.grad`` after a block, such as gradient clipping or ``GradScaler``, does it,
        too. With a ``process_group`` or sharded parameters nothing does: call it before them, on
        every process. Without gradients kept apart it does nothing.

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
            mean = self._gathering.average(self._replicas)
            try:
                self._operate(mean)
            finally:
                mean.clear()
        self._step.seal.settle()

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
            if self._guard.must_skip(self._gathering.flags()):
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
            self._surgery.clock.tick()
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
        self._surgery.check_watched(watched)
        self._surgery.watched.clear()
        self._surgery.watched.update(watched)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets every gradient, those kept apart included."""
        self._step.check_closed("zero_grad()")
        self._step.forget()
        self._witness.forget()
        self.base.zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            raise ValueError(
                "optimizer: cannot be copied or pickled with its process_group, which belongs to "
                "this process; load its state_dict() into a new one"
            )
        return super().__getstate__()

    def _operate(self, buffer: GradientBuffer) -> None:
        """Performs surgery on what a buffer keeps, if that is anything."""
        if buffer.touched():
            self._witness.saw([self._tasks.names[task] for task in sorted(buffer.slots)])
            self._surgery.operate(buffer, self._step)
        else:
            buffer.clear()

    def _testify(self) -> None:
        """Warns, once, before a step on gradients of fewer than two tasks."""
        # Of what is added to `.grad` at once a process does not know the tasks of the others.
        if self._replicas is None or self._step.handling == "apart":
            self._witness.testify(self._parameters())

    def _own_state(self) -> dict[str, Any]:
        return {
            **self._surgery.state_dict(),
            **self._step.state_dict(list(self._parameters())),
            "tasks": list(self._tasks.names),
            "diagnostics": self.diagnostics.state_dict(),
        }

    def _check_own_state(self, own: Mapping[str, Any]) -> None:
        self._tasks.check_saved(own["tasks"])
        self._surgery.check_state(own)
        self.diagnostics.check_state(own["diagnostics"], len(own["tasks"]))
        self._step.check_state(own, sum(1 for _ in self._parameters()))

    def _load_own_state(self, own: Mapping[str, Any] | None) -> None:
        self._step.forget()
        self._witness.forget()
        if self._replicas is not None:
            self._replicas.ask_again()
        if own is None:
            return
        self._tasks.restore([self._tasks.check(name) for name in own["tasks"]])
        self._surgery.load_state_dict(own)
        parameters = list(self._parameters())
        self._step.load_state_dict(own, parameters)
        self.diagnostics.load_state_dict(own["diagnostics"], parameters[0].device)
