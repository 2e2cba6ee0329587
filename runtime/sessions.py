"""The graphs of a plan, loaded."""

from collections.abc import Callable

from ..engines.plan.plan import Plan
from ..engines.plan.traits import Role
from ..engines.session import Session

ON_DEMAND = (Role.REFRESH, Role.REUSE, Role.MODULATION, Role.MODULATED_STEP)
"""Graphs that only some requests need; they share the weights of another graph."""


class Sessions(dict[str, Session]):
    """Sessions by graph. Graphs that not every request needs are loaded on first use.

    Args:
        load: loads a graph; its exceptions are raised here, also later.
    """

    def __init__(self, plan: Plan, load: Callable[[str], Session]) -> None:
        self._load = load
        roles = {name: graph.traits.role for name, graph in plan.manifest.graphs.items()}
        # With other graphs for calls of few rows, the one for many rows may never be needed.
        step = (Role.STEP,) if Role.MODULATED_STEP in roles.values() else ()
        self._later = {name for name, role in roles.items() if role in (*ON_DEMAND, *step)}
        names = [name for name in plan.manifest.graphs if name not in self._later]
        super().__init__({name: load(name) for name in names})

    def __contains__(self, name: object) -> bool:
        """Whether there is such a graph, loaded or not."""
        return super().__contains__(name) or name in self._later

    def __missing__(self, name: str) -> Session:
        if name not in self._later:
            raise KeyError(name)
        self[name] = session = self._load(name)
        return session
