import pytest

from disa.runtime.generation import Request, Sample
from disa.runtime.sampling.noise import PhiloxNoise
from disa.server.scheduling.ticket import Ticket, preview_iterations


@pytest.mark.parametrize(
    ("previews", "iterations", "found"),
    [(0, 64, []), (1, 64, [32]), (3, 64, [16, 32, 48]), (3, 2, [1]), (3, 1, []), (2, 4, [1, 3])],
)
def test_previews_are_spread_evenly(previews: int, iterations: int, found: list[int]) -> None:
    assert preview_iterations(previews, iterations) == found


def test_a_running_ticket_knows_when_a_preview_is_due() -> None:
    request = Request(0, None, PhiloxNoise(0, 0))
    ticket = Ticket(request, lambda event: None, previews=1, sample=Sample(request, 8))
    assert [i for i in range(9) if ticket.previews_after(i)] == [4]


def test_a_ticket_is_cancelled_once_and_for_all() -> None:
    ticket = Ticket(Request(0, None, PhiloxNoise(0, 0)), lambda event: None)
    assert not ticket.cancelled
    ticket.cancel()
    ticket.cancel()
    assert ticket.cancelled
