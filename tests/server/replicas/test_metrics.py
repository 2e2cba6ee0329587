"""Metrics of many replicas on one page."""

from prometheus_client.parser import text_string_to_metric_families

from disa.server.metrics import Metrics
from disa.server.replicas.metrics import joined_metrics


def page(requests: int) -> bytes:
    metrics = Metrics()
    for _ in range(requests):
        metrics.answered("mar", 200, 0.5)
    return metrics.text()


def test_samples_of_all_replicas_stand_under_one_name() -> None:
    text = joined_metrics({"a:1": page(2), "b:7": page(3)}).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    [requests] = [family for family in families if family.name == "disa_requests"]
    assert requests.type == "counter"
    assert {
        sample.labels["replica"]: sample.value
        for sample in requests.samples
        if sample.name == "disa_requests_total"
    } == {"a:1": 2.0, "b:7": 3.0}
    [seconds] = [family for family in families if family.name == "disa_request_seconds"]
    counts = [sample.value for sample in seconds.samples if sample.name.endswith("_count")]
    assert (seconds.type, counts) == ("histogram", [2.0, 3.0])


def test_no_replica_has_no_metrics() -> None:
    assert joined_metrics({}) == b""
