"""Groups of parameters over which the diagnostics tell conflicts apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor


class Watched:
    """Groups of parameters by name.

    Args:
        parameters: lists the parameters that a group may hold.
        is_possible: whether parts of a gradient can be told apart.
    """

    def __init__(
        self, parameters: Callable[[], Iterator[Tensor]], *, is_possible: bool = True
    ) -> None:
        self._parameters = parameters
        self._is_possible = is_possible
        self.groups: dict[str, list[Tensor]] = {}

    def choose(self, groups: Mapping[str, Iterable[Tensor]]) -> None:
        """Watches these groups from now on, and no others.

        Raises:
            TypeError: a name is not a ``str``, or a group holds something else than tensors.
            ValueError: as :meth:`check`, or there can be no groups.
        """
        if groups and not self._is_possible:
            raise ValueError(
                "watch(): must be left out where gradients are sketched, each as a whole; choose "
                'memory="rows" or monitor=True'
            )
        chosen = {}
        for name, parameters in groups.items():
            chosen[name] = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            if not isinstance(name, str):
                raise TypeError(f"groups: must be named by strs, got {name!r}; name the group")
            for parameter in chosen[name]:
                if not isinstance(parameter, Tensor):
                    raise TypeError(
                        f"groups: must hold parameters, got {type(parameter).__name__} in "
                        f"{name!r}; give it module.parameters()"
                    )
        self._check(chosen)
        self.groups = chosen

    def check(self) -> None:
        """Refuses groups with parameters that the optimizer does not hold.

        Raises:
            ValueError: with the group's name.
        """
        self._check(self.groups)

    def _check(self, groups: Mapping[str, Iterable[Tensor]]) -> None:
        held = set(self._parameters()) if groups else set()
        for name, parameters in groups.items():
            for parameter in parameters:
                if parameter not in held:
                    raise ValueError(
                        f"groups: must hold parameters of this optimizer, got one of shape "
                        f"{tuple(parameter.shape)} in {name!r} that it does not have; call watch() "
                        "with its own, or add_param_group() first"
                    )
