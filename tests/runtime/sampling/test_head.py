from typing import Any

import numpy as np

from disa.runtime.sampling.head import MAX_EMBEDDED, Head, HeadRows
from disa.runtime.sampling.sampler import SamplerName, step_table
from disa.runtime.stats import Stats

TABLE = step_table(SamplerName.DDPM, 4)


class Timesteps:
    """Embeds a timestep as itself, and counts."""

    runs = 0

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.runs += 1
        return {"embedding": inputs["timestep"][:, None]}


class Session:
    """Adds condition, noise and guidance to x at every step; keeps what it was given."""

    def iterate(self, carry: Any, constants: Any, per_step: Any, state: Any) -> dict[str, Any]:
        assert carry == {"next_x": "x"}
        self.constants, x = constants, state["x"]
        for step, noise in zip(per_step["step"], per_step["noise"], strict=True):
            added = constants["embedding"][step] + constants["guidance_scale"][:, None]
            x = x + constants["condition"][0] + noise + added
        return {"next_x": x}


def rows(session: Session, timesteps: Timesteps) -> HeadRows:
    condition = np.arange(6.0).reshape(2, 3, 1)
    noise = 10.0 * np.arange(1, 13).reshape(4, 3, 1)
    graphs = {"head": session, "timestep": timesteps}
    head = Head(graphs.__getitem__)  # type: ignore[arg-type]
    return HeadRows(head, condition, np.array([1.0, 2.0, 4.0]), noise, Stats())


def test_steps_take_their_own_noise_and_are_counted() -> None:
    session, timesteps = Session(), Timesteps()
    made = rows(session, timesteps)
    step = np.array([[0, 1, 2], [1, 2, 3]])
    x = made.run_steps(TABLE, step, np.array([0, 1, 2]), np.zeros((3, 1)))
    embedded = TABLE.timesteps[step].sum(axis=0)
    noise = np.array([10 + 40, 50 + 80, 90 + 120])
    expected = embedded + noise + 2 * np.array([0 + 1, 1 + 2, 2 + 4])
    np.testing.assert_allclose(np.asarray(x)[:, 0], expected)
    assert (made.stats.head_calls, made.stats.head_rows) == (2, 6)
    assert session.constants["coefficients"] is TABLE.coefficients


def test_a_table_is_embedded_once() -> None:
    timesteps = Timesteps()
    graphs = {"head": Session(), "timestep": timesteps}
    head = Head(graphs.__getitem__)  # type: ignore[arg-type]
    for _ in range(3):
        head.embedding(step_table(SamplerName.DDPM, 4))
    assert timesteps.runs == 1
    head.embedding(step_table(SamplerName.DDPM, 5))
    assert timesteps.runs == 2


def test_some_rows_are_what_they_were() -> None:
    made = rows(Session(), Timesteps())
    some = made.select(np.array([2, 0]))
    assert (made.items, some.items) == (3, 2)
    assert some.guidance_scale.tolist() == [4, 1]
    assert np.asarray(some.condition)[:, :, 0].tolist() == [[2, 0], [5, 3]]
    assert some.noise(1)[:, 0].tolist() == [60, 40]
    some.run_steps(TABLE, np.array([[0, 0]]), np.array([0, 0]), np.zeros((2, 1)))
    assert made.stats.head_rows == 2  # One count for all.


def test_embeddings_of_many_tables_take_limited_memory() -> None:
    """Requests with 2 to 1,000 steps, alone or together, took gigabytes of a server's memory."""
    timesteps = Timesteps()
    head = Head({"head": Session(), "timestep": timesteps}.__getitem__)  # type: ignore[arg-type]
    tables = [step_table(SamplerName.DDPM, steps) for steps in range(900, 930)]
    for table in tables:
        head.embedding(table)
    assert sum(map(len, head._embeddings.values())) <= MAX_EMBEDDED
    for table in tables[-8:]:
        head.embedding(table)
    assert timesteps.runs == len(tables)
