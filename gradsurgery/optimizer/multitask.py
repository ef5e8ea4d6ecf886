"""The optimizer that users call: tasks' gradients apart until one update is made of all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.arguments import Shared, check_floating
from gradsurgery.diagnostics import Diagnostics
from gradsurgery.distributed.replicas import Replicas
from gradsurgery.gradients.buffer import GradientBuffer
from gradsurgery.gradients.sketch_buffer import SketchBuffer
from gradsurgery.method import FromGram, Method, Weighting
from gradsurgery.optimizer.attributes import Attributes
from gradsurgery.optimizer.gathering import Gathering
from gradsurgery.optimizer.learning import Learning
from gradsurgery.optimizer.losses import GivenLosses, Losses
from gradsurgery.optimizer.nonfinite import Guard
from gradsurgery.optimizer.options import (
    Granularity,
    Memory,
    Monitor,
    OnNonfinite,
    Reduction,
    Scope,
)
from gradsurgery.optimizer.own_state import OwnState
from gradsurgery.optimizer.seal import Seal
from gradsurgery.optimizer.settings import Settings, check_host, shared_parameters, sketch_of
from gradsurgery.optimizer.shown_losses import ShownLosses
from gradsurgery.optimizer.step import Step
from gradsurgery.optimizer.surgery import Surgery
from gradsurgery.optimizer.taking import Taking, take
from gradsurgery.optimizer.task_block import TaskBlock
from gradsurgery.optimizer.tasks import Tasks
from gradsurgery.optimizer.update import Update
from gradsurgery.optimizer.witness import Witness

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MultiTaskOptimizer(Attributes):
    r"""Any method that makes one gradient of the tasks', around any optimizer.

    .. math:: u = \sum_t w_t\, g_t, \qquad w = \mathrm{weighting}(G), \quad G_{ij} = g_i \cdot g_j

    over the parameters that two or more tasks reached; a parameter that one task alone reached
    keeps its plain gradient. ``param_groups``, ``state`` and ``defaults`` are those of ``base``.

    Args:
        base: the optimizer that takes the step.
        weighting: a :class:`gradsurgery.Method`, or ``gram [T, T] -> weights [T]`` of the T tasks
            of this step, in the order in which they were first named. One with a parameter
            ``tasks`` is told their names; what it gives as ``state_dict()`` is saved and resumed.
        tasks: the names that :meth:`task` admits; by default every new name is a new task.
        reduction: ``"sum"``, or ``"mean"`` for the sum over the shared parameters divided by T.
        scope: ``"shared"``, or ``"all"`` to weigh task-specific parameters too, as older
            implementations do.
        shared: the parameters, or modules of them, that may count as shared; every other keeps its
            plain gradient, whichever tasks reach it. By default all may. Declare them where
            autograd sends zeros to another task's head: in blocks, where outputs are concatenated.
        granularity: what is weighted as a whole: ``"model"``, each parameter ``"group"``, or each
            ``"tensor"``.
        seed: of the random choices, if the method makes any.
        every: surgery in every ``every``-th step; those between take the last weights as weights of
            the losses on the shared parameters, at the price of the plain sum.
        start_step: steps of plain loss sum before the first surgery.
        on_nonfinite: what NaN or infinity in a gradient leads to: ``"propagate"``, a non-finite
            update, as ``GradScaler`` needs it; ``"skip_task"``, zero in its place; ``"skip_step"``,
            no step; ``"raise"``, an error; the last two read a number from the device. All but the
            first read every gradient once more, and count what they meet in ``diagnostics``. With a
            ``process_group`` all processes act together, in :meth:`surgery`.
        buffer_dtype: type in which the tasks' gradients are kept; by default their own.
        buffer_device: ``"cpu"`` keeps them in the host's memory, copied while the next task
            computes, with the same result; of no effect to parameters on a CPU.
        fused: ``None`` takes the best kernels there are, ``False`` the reference, ``True`` insists.
        process_group: processes with the same parameters and examples of their own; surgery is that
            of the gradients' mean over them, instead of ``DistributedDataParallel``'s. All must
            call :meth:`surgery` and :meth:`step` equally often. Sharded parameters need none.
        grad_scaler: the ``GradScaler`` that scales the losses, if one does, for a method that looks
            at losses: it sees them unscaled. May be set later too; it is not copied.
        memory: ``"rows"``, T·P numbers; or ``"sketch"``, a :class:`Sketch` with k of each task, for
            weights within about :math:`1/\sqrt{k}` at the memory of the loss sum. :meth:`backward`
            then goes back once more; blocks, a generator and :meth:`take` weigh the *next* step's
            gradients, which is another method, and begin with a step of the plain loss sum.
        monitor: gather the diagnostics of conflicts for a method that keeps no gradients apart;
            ``"sketch"`` estimates them, without T·P numbers.
        warn: whether to warn, once each, of a step without two tasks, and so without surgery; of a
            new task after many steps without one, where ``tasks`` are not declared; of a block
            after ``.grad`` was read, and so surgery performed, in the same step; and of ``.grad``
            being read before a surgery that takes all processes.

    Raises:
        TypeError: ``base``, ``weighting`` or ``process_group`` is not what it should be.
        ValueError: ``base`` has no parameters, ``tasks`` names a task twice, an option is none of
            its choices, or ``process_group`` lacks ``tasks`` or has sharded parameters.

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
        reduction: Reduction = "sum",
        scope: Scope = "shared",
        shared: Shared | None = None,
        granularity: Granularity = "model",
        seed: int = 0,
        every: int = 1,
        start_step: int = 0,
        on_nonfinite: OnNonfinite = "propagate",
        buffer_dtype: torch.dtype | None = None,
        buffer_device: Literal["cpu"] | None = None,
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        memory: Memory = "rows",
        monitor: Monitor = False,
        warn: bool = True,
    ) -> None:
        super().__init__(base)
        check_floating("buffer_dtype", buffer_dtype)
        self.shared = shared_parameters(shared, base, scope, on_nonfinite, process_group)
        names = None if tasks is None else list(tasks)
        method = weighting if isinstance(weighting, Method) else FromGram(weighting)
        least = 2 if method.needs_gram else 1
        self._witness = witness = Witness(type(self).__name__, warn, names, least)
        self._tasks = known = Tasks(names, witness.met_new)
        replicas = Replicas.of(process_group, self._parameters(), known.names)
        self.diagnostics = told = Diagnostics()
        check_host(buffer_device, memory, process_group)
        sketch = sketch_of(memory, monitor, method, on_nonfinite)
        self._settings = Settings(
            reduction, scope, granularity, every, start_step, fused, bool(monitor), sketch
        )
        fills = on_nonfinite == "skip_task"
        self._shown = shown = ShownLosses(self._parameters, known, fills, grad_scaler)
        self._surgery = surgery = Surgery(base, method, known, told, self._settings, seed, shown)
        seal = Seal(self.surgery, witness.found_early, speaks=warn, is_alone=replicas is None)
        buffer = GradientBuffer(buffer_dtype, buffer_device is not None)
        if sketch is not None:
            buffer = SketchBuffer(self._parameters, sketch, surgery.sketch_facts)
        self._step = step = Step(buffer, seal)
        self._guard = guard = Guard(on_nonfinite, known, told, replicas)
        parts = self._parameters, known, step, surgery, guard, replicas, witness, self.shared
        self._learning = Learning(self._parameters, known, surgery, told, replicas)
        self._gathering, self._update = Gathering(*parts), Update(*parts, self._learning)
        self._taking = Taking(*parts, base, self._gathering)
        self._own = OwnState(self._parameters, known, step, surgery, self._update, told)

    def task(self, name: Hashable) -> AbstractContextManager[TaskBlock]:
        """Attributes every gradient made inside the block to one task.

        Backwards in it, and blocks of one task in a step, add up. A block left by an exception
        counts for nothing, except in a plain loss sum, where autograd itself adds to ``.grad``.

        Args:
            name: the task: a ``str``, a number, ``None``, a tuple of such, or what equals one of
                them, such as numpy's and a member of a ``str`` Enum.

        Raises:
            TypeError: a name of another type, which a checkpoint could not be read with.
            ValueError: an unknown name, a block inside another, or a sparse gradient.
            RuntimeError: a backward through a graph that the block of another task has freed.
            FloatingPointError: a gradient that is not finite, with ``on_nonfinite="raise"``.
        """
        self._witness.asked()
        return self._gathering.block(name)

    def backward(self, losses: Losses, retain_graph: bool | None = None, *further: object) -> None:
        """Back-propagates one loss for each task and adds the combined gradient to ``.grad``.

        Args:
            losses: a collection in the order of ``tasks`` with a loss for each, a tensor ``[T]`` of
                them, a mapping of task names to losses, or a generator of losses or of ``(name,
                loss)`` pairs, which is asked for the next one after the last one's backward.
            retain_graph: as in ``Tensor.backward``. By default the graph is kept between the losses
                of a sequence or mapping, which may share it, and freed by each loss of a generator.
            further: nothing; losses that come one by one instead of in a list are refused.

        Raises:
            TypeError: a loss is not a tensor, or they are not in one collection.
            ValueError: a loss is no scalar or needs no gradient, or there are not as many as tasks.

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
        self._gathering.backward_all("backward()", losses, retain_graph, *further)
        self.surgery()

    def pc_backward(
        self, losses: Losses, retain_graph: bool | None = None, *further: object
    ) -> None:
        """Does what :meth:`backward` does, but replaces ``.grad`` instead of adding to it, as
        Pytorch-PCGrad and pytorch_optimizer do; a training loop then needs no ``zero_grad()``.

        Arguments and errors are those of :meth:`backward`. Gradients kept apart are replaced too;
        a parameter that no loss reaches has none then. After an error all are as before.
        """
        self._gathering.backward_all(
            "pc_backward()", losses, retain_graph, *further, and_replace=self.surgery
        )

    def feature_backward(
        self, losses: GivenLosses, features: Tensor | Sequence[Tensor], retain_graph: bool = False
    ) -> None:
        """Surgery on the gradient of a representation that the losses share, for the price of the
        loss sum: every loss goes back to the features, their combined gradient alone goes on.

        It is another method, not a faster :meth:`backward`: a conflict is one between the tasks'
        gradients of the features, not of the parameters. It needs losses of the *same* inputs;
        where each task has its own examples, :meth:`backward` costs no more than the loss sum.

        A path from a loss counts for the first of the features that it meets, and one that meets
        none (heads, skip connections) gives its plain gradient.

        Args:
            losses: as in :meth:`backward`, without a generator.
            features: the shared representation, or several tensors that make it up, on one device.
            retain_graph: keep the graph; by default it is freed.

        Raises:
            TypeError: a loss or a feature is not a tensor.
            ValueError: as :meth:`backward`; or a feature, the graph or the parameters are not of a
                kind that it can do this with.

        Example:
            >>> trunk, heads = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
            >>> parameters = [*trunk.parameters(), *heads.parameters()]
            >>> optimizer = MultiTaskOptimizer(torch.optim.SGD(parameters, lr=0.1), torch.diagonal)
            >>> features = trunk(torch.ones(5, 4))
            >>> optimizer.feature_backward(heads(features).mean(0).unbind(), features)
            >>> optimizer.step()

        Source: Ozan Sener and Vladlen Koltun, "Multi-Task Learning as Multi-Objective
        Optimization", 2018, section 3.3, for another method.
        """
        self._gathering.backward_to_features(losses, features, retain_graph)

    take = take

    def surgery(self) -> None:
        """Makes one gradient of the tasks' and adds it to ``.grad``; :meth:`step` does it for you.

        So does whatever uses ``.grad`` after a block, such as gradient clipping or ``GradScaler``;
        but not with a ``process_group`` or sharded parameters: there call it first, everywhere.
        Without gradients kept apart it does nothing.

        Raises:
            FloatingPointError: with a ``process_group`` and ``on_nonfinite="raise"``, on every
                process, until :meth:`zero_grad`: a task's gradient is not finite on one of them.
        """
        self._step.check_closed("surgery()")
        self._update.make()

    def step(self, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        """Performs surgery on what is still kept apart, then the base optimizer's step.

        Without any gradient nothing happens. A step counts, for ``every``, ``start_step`` and the
        random orders, if a task block or :meth:`backward` belonged to it.

        Args:
            closure: computes the gradients (with task blocks or :meth:`backward`) and returns the
                loss, for optimizers that evaluate it themselves, once or more often.
            options: what else the base optimizer's ``step`` takes.

        Raises:
            ValueError: inside a task block, or with a closure where ``on_nonfinite`` is
                ``"skip_step"``.
        """
        self._step.check_closed("step()")
        self._learning.check_scaler()
        if self._update.must_be_skipped(closure):
            self.zero_grad()
            self.diagnostics.num_skipped_steps += 1
            return None
        self.surgery()
        inside = partial(self._update.inside, surgery=self.surgery)
        step_base = partial(self._step_base, closure, inside, **options)
        return self._update.take(self.base, closure, step_base)

    def look_again(self, losses: GivenLosses) -> None:
        """Shows the method the losses of a step's examples after :meth:`step`, as :class:`FAMO`
        needs; they need no graph. After a step that was left out it does nothing.

        Args:
            losses: as in :meth:`backward`, without a generator.

        Raises:
            TypeError: a loss is not a tensor.
            ValueError: a loss is not a scalar, or the method does not look twice.
        """
        self._step.check_closed("look_again()")
        self._learning.look_again(losses)

    def watch(self, groups: Mapping[str, Iterable[Tensor]]) -> None:
        """Lets the diagnostics tell conflicts in groups of parameters apart, such as layers.

        Args:
            groups: parameters by a name of the group; a parameter may be in several. Each costs a
                pass over its gradients in every surgery; an empty mapping ends it.

        Raises:
            TypeError: a name is not a ``str``, or a group holds something else than tensors.
            ValueError: the optimizer holds no such parameter, or :meth:`surgery` finds none left.

        Example:
            >>> model = torch.nn.ModuleDict({"trunk": torch.nn.Linear(2, 1)})
            >>> optimizer = MultiTaskOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), len)
            >>> optimizer.watch({name: part.parameters() for name, part in model.items()})
        """
        self._surgery.watched.choose(groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets every gradient, those kept apart included."""
        self._step.check_closed("zero_grad()")
        self._update.forget()
        self.base.zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            raise ValueError(
                "optimizer: cannot be copied or pickled with its process_group, which belongs to "
                "this process; load its state_dict() into a new one"
            )
        return super().__getstate__()
