"""An optimizer that stands before another one and owns nothing of what that one has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_OWN = "gradsurgery"  # the key of what is not the base optimizer's in a state dictionary


def of(owner: str, name: str) -> Any:
    """An attribute that really belongs to an object which its holder has as ``owner``."""
    return property(
        lambda self: getattr(getattr(self, owner), name),
        lambda self, value: setattr(getattr(self, owner), name, value),
    )


class Facade(Optimizer):
    """``param_groups``, ``state``, ``defaults`` and the hooks are those of ``base``.

    Nothing is set on it after it was made but what the user sets: whatever changes lies in objects
    that it holds. So a shell that takes on its class and asks it for attributes, as Lightning's
    does, calls its methods to the same effect.

    Args:
        base: the optimizer that takes the step.

    Raises:
        TypeError: ``base`` is not an optimizer.
        ValueError: ``base`` has no parameters.
    """

    def __init__(self, base: Optimizer) -> None:
        # Optimizer.__init__ is not called: it would make parameter groups, state and hooks anew.
        if not isinstance(base, Optimizer):
            raise TypeError(
                f"base: must be a torch.optim.Optimizer, got {type(base).__name__}; "
                "give it the optimizer that is to take the step"
            )
        if not any(group["params"] for group in base.param_groups):
            raise ValueError("base: must have parameters, found none; give it model.parameters()")
        self.base = base

    param_groups = of("base", "param_groups")
    state = of("base", "state")
    defaults = of("base", "defaults")
    # Hooks are the base optimizer's as well, so that its step() fires each of them once.
    _optimizer_step_pre_hooks = of("base", "_optimizer_step_pre_hooks")
    _optimizer_step_post_hooks = of("base", "_optimizer_step_post_hooks")
    _optimizer_state_dict_pre_hooks = of("base", "_optimizer_state_dict_pre_hooks")
    _optimizer_state_dict_post_hooks = of("base", "_optimizer_state_dict_post_hooks")
    _optimizer_load_state_dict_pre_hooks = of("base", "_optimizer_load_state_dict_pre_hooks")
    _optimizer_load_state_dict_post_hooks = of("base", "_optimizer_load_state_dict_post_hooks")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters to the base optimizer; their gradients count from the next block on."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under ``"gradsurgery"`` what an exact resume needs."""
        return {**self.base.state_dict(), _OWN: self._own_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resumes exactly; also takes a plain checkpoint of the base optimizer.

        Gradients kept apart are forgotten.

        Raises:
            ValueError: the checkpoint has other tasks than those declared, or the base optimizer
                refuses it.
        """
        own = state_dict.get(_OWN)
        if own is not None:
            self._check_own_state(own)
        try:
            self.base.load_state_dict(
                {key: value for key, value in state_dict.items() if key != _OWN}
            )
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"state_dict: must be that of the same {type(self.base).__name__} over the same "
                f"parameter groups, found otherwise ({error})"
            ) from error
        self._load_own_state(own)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A learning-rate scheduler hangs its own `step` on the instance; it cannot be copied.
        return {key: value for key, value in self.__dict__.items() if key != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.base.param_groups:
            yield from group["params"]

    def _own_state(self) -> dict[str, Any]:
        """What must be kept besides the base optimizer's state."""
        raise NotImplementedError

    def _check_own_state(self, own: Mapping[str, Any]) -> None:
        """Refuses it, before anything is changed."""

    def _load_own_state(self, own: Mapping[str, Any] | None) -> None:
        """Takes it back, where the checkpoint has it, and forgets the step under way."""
        raise NotImplementedError
