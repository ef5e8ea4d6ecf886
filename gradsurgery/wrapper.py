"""The wrapper that keeps each task's gradient apart until one update is made of them all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import kernels
from gradsurgery.buffer import GradientBuffer, Units, is_whole, picked
from gradsurgery.diagnostics import Diagnostics
from gradsurgery.distributed import AveragedBuffer, check_alike, check_group, sum_over
from gradsurgery.features import check_features, head_gradients
from gradsurgery.losses import Losses, named, one_by_one
from gradsurgery.nonfinite import OnNonfinite, drop_unless, is_finite
from gradsurgery.shards import is_spread, local, placed_as, true_everywhere

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Weighting = Callable[[Tensor], Tensor]
# What becomes of a task's gradient when its block ends. It is kept apart until surgery; or added to
# .grad, multiplied by the task's weight; or autograd itself has added it and nothing is left to do.
Handling = Literal["apart", "weighted", "plain"]
Granularity = Literal["model", "group", "tensor"]


def _of_base(name: str) -> Any:
    """An attribute of the optimizer that really belongs to the one it wraps."""
    return property(
        lambda self: getattr(self.base, name),
        lambda self, value: setattr(self.base, name, value),
    )


class MultiTaskOptimizer(Optimizer):
    r"""Any gradient surgery that is a function of the Gram matrix, around any optimizer.

    .. math:: u = \sum_t w_t\, g_t, \qquad w = \mathrm{weighting}(G), \quad G_{ij} = g_i \cdot g_j

    over the parameters that two or more tasks reached; a parameter that one task alone reached
    keeps its plain gradient. ``param_groups``, ``state`` and ``defaults`` are those of ``base``.

    Args:
        base: the optimizer that takes the step.
        weighting: ``gram [T, T] -> weights [T]``, T being the tasks of this step, in the order in
            which they were first named.
        tasks: the names that :meth:`task` admits; by default every new name is a new task.
        reduction: ``"sum"``, or ``"mean"`` for the sum over the shared parameters divided by T.
        scope: ``"shared"``, or ``"all"`` to let every parameter into the Gram matrix and the
            weights, task-specific ones included, as older implementations do.
        granularity: what is weighted as a whole: the ``"model"``, each parameter ``"group"`` of
            ``base``, or each ``"tensor"``.
        seed: of the random choices, where the weighting makes any.
        on_nonfinite: what a gradient with NaN or infinity in it leads to: ``"propagate"`` makes the
            update non-finite too, which ``GradScaler`` relies on; ``"skip_task"`` makes the
            gradient zero; ``"skip_step"`` leaves the step out, and ``"raise"`` raises, both of
            which read a number from the device. All but the first cost one more read of every
            gradient, and ``diagnostics`` counts what they met.
        buffer_dtype: type in which the tasks' gradients are kept; that of the gradients by default.
        fused: ``None`` takes the best kernels there are, ``False`` the reference, ``True`` insists.
        process_group: processes that hold the same parameters and each have examples of their own;
            surgery is then that of the gradients' mean over them. It replaces the averaging of
            ``DistributedDataParallel``, and every process must call :meth:`surgery` and
            :meth:`step` equally often. Not for sharded parameters, which need nothing.

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
        granularity: Granularity = "model",
        seed: int = 0,
        on_nonfinite: OnNonfinite = "propagate",
        buffer_dtype: torch.dtype | None = None,
        fused: bool | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        # Optimizer.__init__ is not called: it would make parameter groups, state and hooks anew.
        if not isinstance(base, Optimizer):
            raise TypeError(
                f"base: must be a torch.optim.Optimizer, got {type(base).__name__}; "
                "give it the optimizer that is to take the step"
            )
        if not any(group["params"] for group in base.param_groups):
            raise ValueError("base: must have parameters, found none; give it model.parameters()")
        if not callable(weighting):
            raise TypeError(
                f"weighting: must be a callable gram -> weights, got {type(weighting).__name__}"
            )
        _check_choice("reduction", reduction, ("sum", "mean"))
        _check_choice("scope", scope, ("shared", "all"))
        _check_choice("granularity", granularity, ("model", "group", "tensor"))
        _check_choice(
            "on_nonfinite", on_nonfinite, ("propagate", "raise", "skip_task", "skip_step")
        )
        check_integer("seed", seed)
        if buffer_dtype is not None and not isinstance(buffer_dtype, torch.dtype):
            raise TypeError(
                f"buffer_dtype: must be a torch.dtype, got {type(buffer_dtype).__name__}"
            )
        if buffer_dtype is not None and not buffer_dtype.is_floating_point:
            raise ValueError(f"buffer_dtype: must be a floating type, got {buffer_dtype}")
        kernels.choose(fused)
        names = [] if tasks is None else list(tasks)
        if len(set(names)) < len(names):
            raise ValueError(f"tasks: must name each task once, got {names}")
        if process_group is not None:
            parameters = [p for group in base.param_groups for p in group["params"]]
            check_group(process_group, parameters, names)
        self.base = base
        self.weighting = weighting
        self.reduction = reduction
        self.scope = scope
        self.granularity = granularity
        self.seed = seed
        self.on_nonfinite = on_nonfinite
        self.fused = fused
        self.process_group = process_group
        self.diagnostics = Diagnostics()
        self._names: list[Hashable] = names
        self._names_are_fixed = tasks is not None
        self._buffer = GradientBuffer(buffer_dtype)
        self._watched_names: tuple[str, ...] = ()
        self._watched = Units(())
        self._handling: Handling | None = None  # None until the step's first block
        self._is_open = False
        self._is_alike = False  # whether the processes have compared what they are set up with
        self._is_averaged = False  # whether .grad is already the mean over the processes
        self._finite: Tensor | None = None  # whether all of the step's gradients so far are
        self._num_steps = 0
        self._clock: Tensor | None = None  # the same number, on the gradients' device

    param_groups = _of_base("param_groups")
    state = _of_base("state")
    defaults = _of_base("defaults")
    # Hooks are the base optimizer's as well, so that its step() fires each of them once.
    _optimizer_step_pre_hooks = _of_base("_optimizer_step_pre_hooks")
    _optimizer_step_post_hooks = _of_base("_optimizer_step_post_hooks")
    _optimizer_state_dict_pre_hooks = _of_base("_optimizer_state_dict_pre_hooks")
    _optimizer_state_dict_post_hooks = _of_base("_optimizer_state_dict_post_hooks")
    _optimizer_load_state_dict_pre_hooks = _of_base("_optimizer_load_state_dict_pre_hooks")
    _optimizer_load_state_dict_post_hooks = _of_base("_optimizer_load_state_dict_post_hooks")

    @property
    def tasks(self) -> tuple[Hashable, ...]:
        """Names of the tasks: those declared, or those met so far."""
        return tuple(self._names)

    @contextmanager
    def task(self, name: Hashable) -> Iterator[None]:
        """Attributes every gradient made inside the block to one task.

        Any number of backwards may run in it, and any number of blocks of one task in a step: they
        add up. A block left by an exception counts for nothing, except in a plain loss sum, where
        autograd itself adds to ``.grad``.

        Args:
            name: the task.

        Raises:
            ValueError: an unknown name, a block inside another, or a sparse gradient.
        """
        self._check_name(name)
        self._check_closed("task()")
        if self._handling is None:
            self._handling = self._handling_to_begin()
        self._is_open = True
        try:
            if self._handling == "plain":
                yield
            else:
                with self._apart(name):
                    yield
        finally:
            self._is_open = False
        self._index(name)

    def backward(self, losses: Losses, retain_graph: bool | None = None) -> None:
        """Back-propagates one loss for each task and writes the combined gradient to ``.grad``.

        Args:
            losses: a sequence (a loss for each task, in the order of ``tasks``), a mapping of task
                names to losses, or a generator of losses or of ``(name, loss)`` pairs. A generator
                is asked for the next loss after the last one's backward, so that one graph is
                alive at a time.
            retain_graph: as in ``Tensor.backward``. By default the graph is kept between the losses
                of a sequence or mapping, which may share it, and freed by each loss of a generator.

        Raises:
            TypeError: a loss is not a tensor.
            ValueError: a loss is not a scalar or needs no gradient, their number is not that of the
                declared tasks, or there is none.
        """
        self._check_closed("backward()")
        with self._all_or_nothing():
            if losses == {} and self.process_group is not None:
                pass  # no examples here in this step; other processes have some
            elif isinstance(losses, (Sequence, Mapping)):
                given = named(losses, self._names if self._names_are_fixed else None)
                for name in given:
                    self._check_name(name)
                self._backward_given(given, retain_graph)
            else:
                self._backward_lazily(losses, bool(retain_graph))
        self.surgery()

    pc_backward = backward

    def feature_backward(
        self,
        losses: Sequence[Tensor] | Mapping[Any, Tensor],
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

        Args:
            losses: as in :meth:`backward`, without a generator.
            features: the shared representation, or several tensors that make it up.
            retain_graph: keep the graph; by default it is freed.

        Raises:
            TypeError: a loss or a feature is not a tensor.
            ValueError: as :meth:`backward`; or a feature needs no gradient, a task is missing
                where there is a process group, or parameters are sharded.

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
        self._check_closed("feature_backward()")
        shared = [features] if isinstance(features, Tensor) else list(features)
        check_features(shared)
        with self._all_or_nothing():
            given = named(losses, self._names if self._names_are_fixed else None)
            for name in given:
                self._check_name(name)
            self._check_features_everywhere(given)
            handling = self._handling or self._handling_to_begin()
            if handling == "plain":
                self._backward_given(given, retain_graph)
            else:
                self._handling = handling
                self._backward_features(given, shared, retain_graph)

    @torch.no_grad()
    def surgery(self) -> None:
        """Makes one gradient of the tasks' and adds it to ``.grad``; :meth:`step` does it for you.

        Call it where something must see the combined gradient before the step: gradient clipping,
        ``GradScaler.unscale_`` and ``GradScaler.step``. Without gradients kept apart it does
        nothing.
        """
        self._check_closed("surgery()")
        with self._averaged():
            self._operate()

    def _operate(self) -> None:
        buffer = self._buffer
        if not buffer.slots:
            return
        of_tasks = sorted(buffer.slots)
        chosen = self._kernels(self._buffer.touched())
        buffer.settle()
        units = self._units()
        grams = self._of_tasks(buffer.grams(chosen.gram_matrices, units, alone=self.scope == "all"))
        weights, coefficients = self._weigh(grams, of_tasks)
        watched = (
            self._of_tasks(buffer.grams(chosen.gram_matrices, self._watched, alone=False))
            if self._watched_names
            else None
        )
        names = [self._names[task] for task in of_tasks]
        self.diagnostics.record(names, of_tasks, self._names, grams, weights, coefficients)
        self.diagnostics.record_groups(self._watched_names, watched)
        if self._handling == "apart":
            by_slot = [of_tasks.index(task) for task in buffer.slots]
            self._write(units, picked(weights.T, by_slot).T)
        buffer.clear()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs surgery on what is still kept apart, then the base optimizer's step.

        Args:
            closure: computes the gradients (with task blocks or :meth:`backward`) and returns the
                loss, for optimizers that evaluate it more than once.

        Raises:
            ValueError: without a closure, when no parameter has a gradient.
        """
        self._check_closed("step()")
        if self.on_nonfinite == "skip_step":
            if closure is not None:
                raise ValueError(
                    'step(): must be called without a closure where on_nonfinite="skip_step", '
                    "because the base optimizer would go on; choose another on_nonfinite"
                )
            if not self._was_finite():
                self.zero_grad()
                self.diagnostics.num_skipped_steps += 1
                return None
        if closure is None:
            self.surgery()
            if all(parameter.grad is None for parameter in self._parameters()):
                raise ValueError(
                    "step(): no parameter has a gradient; call backward() inside "
                    "`with optimizer.task(name):` first"
                )
            result = self.base.step()
        else:
            evaluate = closure

            def closure_with_surgery() -> Any:
                loss = evaluate()
                self.surgery()
                return loss

            result = self.base.step(closure_with_surgery)
        self._num_steps += 1
        if self._clock is not None:
            self._clock += 1
        self._handling = self._finite = None
        self._is_averaged = False
        return result

    def watch(self, groups: Mapping[str, Iterable[Tensor]]) -> None:
        """Lets the diagnostics tell conflicts in groups of parameters apart, such as layers.

        Each group costs one more pass over its gradients in every surgery from now on; an empty
        mapping ends it.

        Args:
            groups: parameters by a name of the group; a parameter may be in several.

        Example:
            >>> model = torch.nn.ModuleDict({"trunk": torch.nn.Linear(2, 1)})
            >>> optimizer = MultiTaskOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), len)
            >>> optimizer.watch({name: part.parameters() for name, part in model.items()})
        """
        self._watched_names = tuple(groups)
        self._watched = Units(groups.values())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets every gradient, those kept apart included."""
        self._check_closed("zero_grad()")
        self._buffer.clear()
        self._handling = self._finite = None
        self._is_averaged = False
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters to the base optimizer; their gradients count from the next block on."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under ``"gradsurgery"`` what an exact resume needs."""
        return {**self.base.state_dict(), "gradsurgery": self._own_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resumes exactly; also takes a plain checkpoint of the base optimizer.

        Gradients kept apart are forgotten.

        Raises:
            ValueError: the checkpoint has other tasks than those declared, or the base optimizer
                refuses it.
        """
        own = state_dict.get("gradsurgery")
        if own is not None and self._names_are_fixed and list(own["tasks"]) != self._names:
            raise ValueError(
                f"state_dict: must be of the tasks {self._names}, found {list(own['tasks'])}; "
                "declare the tasks that the checkpoint was made with"
            )
        try:
            self.base.load_state_dict(
                {key: value for key, value in state_dict.items() if key != "gradsurgery"}
            )
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"state_dict: must be that of the same {type(self.base).__name__} over the same "
                f"parameter groups, found otherwise ({error})"
            ) from error
        self._buffer.clear()
        self._handling = self._finite = None
        self._is_alike = self._is_averaged = False
        if own is not None:
            self._load_own_state(own)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            raise ValueError(
                "optimizer: cannot be copied or pickled with its process_group, which belongs to "
                "this process; load its state_dict() into a new one"
            )
        # A learning-rate scheduler hangs its own `step` on the instance; it cannot be copied.
        return {key: value for key, value in self.__dict__.items() if key != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    # What the methods differ in.

    def _choose_handling(self) -> Handling:
        """What becomes of the tasks' gradients in the step that begins."""
        return "apart"

    def _handling_to_begin(self) -> Handling:
        """The same, where each block's gradients may have to be looked at."""
        handling = self._choose_handling()
        return "weighted" if handling == "plain" and self._guards else handling

    @property
    def _guards(self) -> bool:
        return self.on_nonfinite != "propagate"

    def _guard(self, task: int, grads: Collection[Tensor]) -> None:
        """Deals with a gradient that is not finite."""
        if not (self._guards and grads):
            return
        finite = is_finite([local(grad) for grad in grads])
        if any(is_spread(grad) for grad in grads):
            finite = true_everywhere(finite, list(grads))
        self.diagnostics.count_nonfinite(task, len(self._names), finite)
        if self.on_nonfinite == "skip_task":
            drop_unless(finite, [local(grad) for grad in grads])
        elif self.on_nonfinite == "skip_step":
            self._finite = finite if self._finite is None else self._finite & finite
        elif not bool(finite):
            raise FloatingPointError(
                f"task {self._names[task]!r}: gradients must be finite, found NaN or infinity; "
                "look at the task's loss, or choose another on_nonfinite"
            )

    def _was_finite(self) -> bool:
        """Whether every gradient of this step so far was finite, on all processes."""
        if self.process_group is None:
            return self._finite is None or bool(self._finite)
        device = next(self._parameters()).device
        here = torch.ones((), device=device) if self._finite is None else self._finite.float()
        return bool(sum_over(here, self.process_group) == self.process_group.size())

    def _weigh(
        self,
        grams: Tensor,  # [S, T, T]
        of_tasks: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:  # [S, T], [S, T, T]
        """Weights of the tasks of this step, numbered by ``of_tasks``, in each unit; and of a
        method that projects each gradient, what the projections are made of."""
        return torch.stack([self._weigh_one(gram, len(of_tasks)) for gram in grams]), None

    def _weigh_one(self, gram: Tensor, num_tasks: int) -> Tensor:  # [T, T] -> [T]
        weights = self.weighting(gram)
        if not isinstance(weights, Tensor):
            raise TypeError(f"weighting: must return a tensor, got {type(weights).__name__}")
        if weights.shape != (num_tasks,):
            raise ValueError(
                f"weighting: must return {num_tasks} weights for a Gram matrix of "
                f"{num_tasks} tasks, got shape {tuple(weights.shape)}"
            )
        return weights.detach().to(gram.device, gram.dtype, non_blocking=True)

    def _loss_weight(self, task: int) -> float:
        """Weight of a task's loss, where gradients are not kept apart."""
        return 1.0

    def _scale(self, task: int, grads: Mapping[Tensor, Tensor]) -> None:
        """Multiplies a task's gradients by its weight, in place."""
        weight = self._loss_weight(task)
        if weight != 1.0:
            torch._foreach_mul_([local(grad) for grad in grads.values()], weight)

    def _own_state(self) -> dict[str, Any]:
        """What the wrapper itself must keep."""
        steps = self._num_steps if self._clock is None else int(self._clock)
        places = {parameter: place for place, parameter in enumerate(self._parameters())}
        in_rows, num_rows = self._buffer.layout()
        return {
            "tasks": list(self._names),
            "seed": self.seed,
            "num_steps": steps,
            "in_rows": [places[parameter] for parameter in in_rows if parameter in places],
            "num_rows": num_rows,
            "diagnostics": self.diagnostics.state_dict(),
        }

    def _load_own_state(self, own: Mapping[str, Any]) -> None:
        """Takes it back."""
        self._names = list(own["tasks"])
        self.seed = own["seed"]
        self._num_steps = own["num_steps"]
        self._clock = None
        parameters = list(self._parameters())
        self._buffer.restore([parameters[place] for place in own["in_rows"]], own["num_rows"])
        self.diagnostics.load_state_dict(own["diagnostics"], parameters[0].device)

    # What they have in common.

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.base.param_groups:
            yield from group["params"]

    def _take_grads(self) -> dict[Tensor, Tensor]:
        """Removes ``.grad`` from every parameter that has one."""
        taken: dict[Tensor, Tensor] = {}
        for parameter in self._parameters():
            if parameter.grad is not None:
                taken[parameter] = placed_as(parameter, parameter.grad)
                parameter.grad = None
        return taken

    def _hide_grads(self) -> dict[Tensor, Tensor]:
        """The same, of gradients that must outlive the rows or DDP's buckets they may lie in."""
        return {
            parameter: grad if is_whole(grad) and not self._buffer.holds(grad) else grad.clone()
            for parameter, grad in self._take_grads().items()
        }

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Undoes every change to gradients and tasks if the block fails."""
        names, handling = list(self._names), self._handling
        outside = self._hide_grads()
        before = self._buffer
        if before.slots:
            self._buffer = GradientBuffer(before.dtype)
        try:
            yield
        except BaseException:
            self._names, self._handling = names, handling
            if self._buffer is before:
                before.clear()
            self._buffer = before
            self._take_grads()
            for parameter, grad in outside.items():
                parameter.grad = grad
            raise
        if self._buffer is not before:
            self._buffer.move_into(before)
            self._buffer = before
        for parameter, grad in outside.items():
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)

    @contextmanager
    def _apart(self, name: Hashable) -> Iterator[None]:
        """Hides the gradients there are while the block makes new ones, then keeps those."""
        outside = self._hide_grads()
        try:
            yield
            grads = self._take_grads()
            _check_dense(name, grads)
            if grads:
                with torch.no_grad():
                    self._guard(self._index(name), list(grads.values()))
                    outside = self._keep(self._index(name), grads, outside)
        finally:
            self._take_grads()
            for parameter, grad in outside.items():
                parameter.grad = grad

    def _keep(
        self, task: int, grads: dict[Tensor, Tensor], outside: dict[Tensor, Tensor]
    ) -> dict[Tensor, Tensor]:
        """Deals with a block's gradients; returns what ``.grad`` is to hold after it."""
        apart = self._handling == "apart"
        if apart or self._watches():
            self._buffer.capture(task, list(grads.items()), copy=not apart)
        if apart:
            return outside
        self._scale(task, grads)
        both = [parameter for parameter in grads if parameter in outside]
        if both:
            torch._foreach_add_([local(outside[p]) for p in both], [local(grads[p]) for p in both])
        return {**grads, **outside}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the mean over the process group in the place of every gradient there is here."""
        if self.process_group is None:
            yield
            return
        parameters = list(self._parameters())
        if not self._is_alike:
            options = self.seed, self.reduction, self.scope, self.granularity, self._num_steps
            shapes = [(tuple(p.shape), p.dtype) for p in parameters]
            check_alike(self.process_group, (self._names, options, shapes))
            self._is_alike = True
        own = self._buffer
        outside = {} if self._is_averaged else self._take_grads()
        mean = AveragedBuffer(
            own, parameters, len(self._names), outside, self.scope == "all", self.process_group
        )
        for parameter, grad in mean.outside.items():
            parameter.grad = grad
        self._is_averaged = True
        # A process without a block in this step has not yet asked.
        self._handling = self._handling or self._handling_to_begin()
        self._buffer = mean
        try:
            yield
        finally:
            mean.clear()
            self._buffer = own

    def _watches(self) -> bool:
        """Whether diagnostics are gathered although the update needs none."""
        return False

    def _units(self) -> Units:
        """Which parameters the method looks at together."""
        if self.granularity == "group":
            return Units(group["params"] for group in self.base.param_groups)
        if self.granularity == "tensor":
            reached = self._buffer.touched() if self.scope == "all" else self._buffer.shared()
            kept = set(reached)
            return Units([parameter] for parameter in self._parameters() if parameter in kept)
        return Units()

    def _of_tasks(self, grams: Tensor) -> Tensor:  # [S, T, T], by slot -> by task
        slots = [slot for _, slot in sorted(self._buffer.slots.items())]
        if slots == list(range(len(slots))):
            return grams
        return picked(picked(grams.permute(1, 2, 0), slots).transpose(0, 1), slots).permute(2, 1, 0)

    def _kernels(self, reached: Iterable[Tensor]) -> ModuleType:
        return kernels.choose(self.fused, *{tensor.device for tensor in reached})

    def _write(self, units: Units, weights: Tensor) -> None:  # [S, T], by slot
        """Adds the combined gradient to ``.grad``."""
        combined = self._buffer.combine(
            self._kernels(self._buffer.touched()).combine_segments,
            units,
            weights / weights.shape[-1] if self.reduction == "mean" else weights,
            weights if self.scope == "all" else None,
        )
        for parameter, grad in combined.items():
            parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)

    def _backward_given(self, losses: Mapping[Hashable, Tensor], retain_graph: bool | None) -> None:
        handling = self._handling or self._handling_to_begin()
        if handling == "plain" or (handling == "weighted" and not self._must_see_each_task()):
            # One pass through a trunk that the losses share, instead of one for each of them.
            self._handling = handling
            tasks = [self._index(name) for name in losses]
            seeds = [
                torch.full_like(loss, self._loss_weight(task))
                for task, loss in zip(tasks, losses.values(), strict=True)
            ]
            torch.autograd.backward(list(losses.values()), seeds, retain_graph=bool(retain_graph))
            return
        last = list(losses)[-1]
        for name, loss in losses.items():
            retain = name != last if retain_graph is None else retain_graph
            with self.task(name):
                loss.backward(retain_graph=retain)

    def _backward_features(
        self, losses: Mapping[Hashable, Tensor], features: Sequence[Tensor], retain_graph: bool
    ) -> None:
        by_task = sorted((self._index(name), loss) for name, loss in losses.items())
        rows, heads = [], []
        for task, loss in by_task:
            # A graph that losses share must last until the last of them.
            retain = retain_graph or task != by_task[-1][0]
            of_features, of_leaves = head_gradients(loss, features, retain)
            with torch.no_grad():
                self._guard(task, [*of_features, *of_leaves.values()])
            rows.append(torch.cat([grad.flatten() for grad in of_features]))
            heads.append(of_leaves)
        with torch.no_grad():
            grads = torch.stack(rows)
            del rows
            chosen = self._kernels(features)
            of_tasks = [task for task, _ in by_task]
            gram = self._of_all_examples(chosen.gram_matrix(grads)[None])
            weights, coefficients = self._weigh(gram, of_tasks)
            names = [self._names[task] for task in of_tasks]
            self.diagnostics.record(names, of_tasks, self._names, gram, weights, coefficients)
            self.diagnostics.record_groups((), None)
            mixed = weights[0] / len(of_tasks) if self.reduction == "mean" else weights[0]
            combined = chosen.combine(mixed, grads, grads[0])
            parts = combined.split([feature.numel() for feature in features])
            upstream = [part.view_as(f) for part, f in zip(parts, features, strict=True)]
        torch.autograd.backward(list(features), upstream, retain_graph=retain_graph)
        for of_leaves in heads:
            for leaf, grad in of_leaves.items():
                leaf.grad = grad if leaf.grad is None else leaf.grad + grad

    def _of_all_examples(self, gram: Tensor) -> Tensor:  # [1, T, T]
        """The Gram matrix of feature gradients, each process having those of its own examples."""
        if self.process_group is None:
            return gram
        return sum_over(gram, self.process_group) / self.process_group.size() ** 2

    def _check_features_everywhere(self, losses: Mapping[Hashable, Tensor]) -> None:
        if any(is_spread(parameter) for parameter in self._parameters()):
            raise ValueError(
                "feature_backward(): must have parameters that are not sharded; use backward()"
            )
        if self.process_group is not None and set(losses) != set(self._names):
            raise ValueError(
                f"losses: must be one for each of the tasks {self._names} where there is a "
                f"process_group, got those of {list(losses)}; use backward() when a task is absent"
            )

    def _backward_lazily(
        self, losses: Iterator[Tensor] | Iterator[tuple[Hashable, Tensor]], retain_graph: bool
    ) -> None:
        for name, loss in one_by_one(losses, self._names if self._names_are_fixed else None):
            self._check_name(name)
            with self.task(name):
                loss.backward(retain_graph=retain_graph)
            del loss

    def _must_see_each_task(self) -> bool:
        """Whether tasks need a backward each although nothing is kept apart."""
        return self._watches() or self._guards

    def _index(self, name: Hashable) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)

    def _check_name(self, name: Hashable) -> None:
        if self._names_are_fixed and name not in self._names:
            raise ValueError(
                f"task: must be one of {self._names}, got {name!r}; "
                "declare it in tasks= or leave tasks= out"
            )

    def _check_closed(self, what: str) -> None:
        # Lightning's shell takes on the class of what it holds, and would keep what is set here.
        if "base" not in self.__dict__:
            raise TypeError(
                f"{what}: must be called on the optimizer itself, got a {type(self).__name__} "
                "around it; call it on its .optimizer"
            )
        if self._is_open:
            raise ValueError(
                f"{what}: must not be called inside a task block; leave the block first"
            )


def check_integer(argument: str, found: object, at_least: int | None = None) -> None:
    """Refuses what is not a whole number, or is too small a one.

    Raises:
        TypeError, ValueError: with the argument's name.
    """
    if isinstance(found, bool) or not isinstance(found, Integral):
        raise TypeError(f"{argument}: must be a whole number, got {type(found).__name__}")
    if at_least is not None and int(found) < at_least:
        raise ValueError(f"{argument}: must be at least {at_least}, got {found}")


def _check_choice(argument: str, found: object, choices: Sequence[str]) -> None:
    if found not in choices:
        raise ValueError(f"{argument}: must be one of {', '.join(choices)}, got {found!r}")


def _check_dense(name: Hashable, grads: Mapping[Tensor, Tensor]) -> None:
    for grad in grads.values():
        if grad.layout != torch.strided:
            raise ValueError(
                f"task {name!r}: gradients must be dense, found one of layout {grad.layout} and "
                f"shape {tuple(grad.shape)}; build the embedding with sparse=False"
            )
