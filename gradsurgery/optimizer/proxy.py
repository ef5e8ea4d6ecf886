"""An optimizer that stands before another one and owns nothing of what that one has."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradsurgery.optimizer.own_state import OwnState

_OWN = "gradsurgery"  # the key of what is not the base optimizer's in a state dictionary
_HOOKS = tuple(
    f"_optimizer_{of}_{when}_hooks"
    for of in ("step", "state_dict", "load_state_dict")
    for when in ("pre", "post")
)

Closure = Callable[[], Any]


def delegated(owner: str, name: str, doc: str | None = None) -> Any:
    """An attribute that really belongs to an object which its holder has as ``owner``."""
    return property(
        lambda self: getattr(getattr(self, owner), name),
        lambda self, value: setattr(getattr(self, owner), name, value),
        doc=doc,
    )


class Proxy(Optimizer):
    """``param_groups``, ``state`` and ``defaults`` are those of ``base``.

    Whatever else ``base`` has is found here too, such as ``train()`` and ``eval()`` of optimizers
    without a schedule: ``optimizer.name`` is ``optimizer.base.name`` where nothing here has that
    name. Names with a leading underscore are not passed on, because they tell others what an
    optimizer's own ``step()`` does: ``GradScaler`` unscales and checks the gradients of a fused
    ``base`` like those of any other. An attribute that is set here is set here alone.

    Hooks registered here are called with this optimizer, after those registered on ``base``, which
    are called with ``base``. Torch's global hooks are called once a step, with ``base``. Hooks of a
    step see the combined gradient.

    Nothing is set on it after it was made but what the user sets: whatever changes lies in objects
    that it holds. So a shell that takes on its class and asks it for attributes, as Lightning's
    does, calls its methods to the same effect.

    Args:
        base: the optimizer that takes the step.

    Raises:
        TypeError: ``base`` is not an optimizer.
        ValueError: ``base`` has no parameters.
    """

    base: Optimizer
    _own: OwnState  # saved beside that of base

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            cls.__init__ = _with_remedy(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, base: Optimizer) -> None:
        # Optimizer.__init__ is not called: it would make parameter groups and state anew.
        if not isinstance(base, Optimizer):
            raise TypeError(
                f"base: must be a torch.optim.Optimizer, got {type(base).__name__}; "
                + _remedy(type(self))
            )
        if not any(group["params"] for group in base.param_groups):
            raise ValueError("base: must have parameters, found none; give it model.parameters()")
        self.base = base
        self._forget_hooks()

    param_groups: list[dict[str, Any]] = delegated("base", "param_groups")
    state: defaultdict[Tensor, Any] = delegated("base", "state")
    defaults: dict[str, Any] = delegated("base", "defaults")

    def __getattr__(self, name: str) -> Any:
        # Called for what is missing here. There is no `base` yet while this is unpickled.
        missing = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name.startswith("_") or "base" not in vars(self):
            raise AttributeError(missing)
        try:
            return getattr(self.base, name)
        except AttributeError as error:
            raise AttributeError(f"{missing}, nor has its base ({error})") from error

    def __dir__(self) -> Iterable[str]:
        return {*super().__dir__(), *(name for name in dir(self.base) if name[0] != "_")}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters to the base optimizer; their gradients count from the next block on."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under ``"gradsurgery"`` what an exact resume needs."""
        for before in list(self._optimizer_state_dict_pre_hooks.values()):
            before(self)
        state_dict = {**self.base.state_dict(), _OWN: self._own.state_dict()}
        for after in list(self._optimizer_state_dict_post_hooks.values()):
            changed = after(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resumes exactly; also takes a plain checkpoint of the base optimizer.

        Gradients kept apart are forgotten.

        Raises:
            ValueError: the checkpoint has other tasks than those declared, or the base optimizer
                refuses it.
        """
        saved = dict(state_dict)
        for before in list(self._optimizer_load_state_dict_pre_hooks.values()):
            changed = before(self, saved)
            saved = saved if changed is None else dict(changed)
        own = saved.pop(_OWN, None)
        if own is not None:
            self._own.check(own)
        try:
            self.base.load_state_dict(saved)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"state_dict: must be that of the same {type(self.base).__name__} over the same "
                f"parameter groups, found otherwise ({error})"
            ) from error
        self._own.load_state_dict(own)
        for after in list(self._optimizer_load_state_dict_post_hooks.values()):
            after(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A learning-rate scheduler hangs its own `step` on the instance; it cannot be copied. Hooks
        # are not copied by any optimizer of torch.
        return {key: value for key, value in vars(self).items() if key not in ("step", *_HOOKS)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_hooks()

    def _forget_hooks(self) -> None:
        vars(self).update({hooks: OrderedDict() for hooks in _HOOKS})

    def _parameters(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.base.param_groups)

    def _step_base(
        self, closure: Closure | None, prepare: Callable[[Closure], Closure], **options: Any
    ) -> Any:
        """Takes the base optimizer's step, and has it call the hooks registered here.

        Args:
            closure: the closure that the step was called with.
            prepare: makes the closure for ``base`` of this one, or of one that a hook returns.
            options: given on to ``base.step()``.
        """

        def hook_of_base(hook: Callable[..., Any]) -> Callable[..., Any]:
            def with_ours(base: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                changed = hook(self, (self, *args[1:]), kwargs)
                if not (isinstance(changed, tuple) and len(changed) == 2):
                    return changed  # torch refuses what is not None
                (_, *given), kwargs = changed
                if given and given[0] is not None:
                    given[0] = prepare(given[0])
                elif kwargs.get("closure") is not None:
                    kwargs = {**kwargs, "closure": prepare(kwargs["closure"])}
                return (base, *given), kwargs

            return with_ours

        # Registered for this step alone: base.step() by itself is no step of this optimizer.
        handles = [
            *(
                self.base.register_step_pre_hook(hook_of_base(hook))
                for hook in self._optimizer_step_pre_hooks.values()
            ),
            *(
                self.base.register_step_post_hook(hook_of_base(hook))
                for hook in self._optimizer_step_post_hooks.values()
            ),
        ]
        try:
            args = () if closure is None else (prepare(closure),)
            return self.base.step(*args, **options)
        finally:
            for handle in handles:
                handle.remove()


def _remedy(cls: type) -> str:
    """Says what to do about arguments that are another optimizer's."""
    return f"wrap an optimizer: {cls.__name__}(torch.optim.AdamW(model.parameters(), lr=...))"


def _with_remedy(init: Callable[..., None]) -> Callable[..., None]:
    """Lets a constructor say what to do about arguments that it does not have, such as ``lr``."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: object, *args: Any, **options: Any) -> None:
        cls = type(self)
        try:
            signature.bind(self, *args, **options)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}; {_remedy(cls)}") from None
        init(self, *args, **options)

    return checked
