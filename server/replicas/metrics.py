"""Joins the metrics of all replicas."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


class _Pages:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def joined_metrics(pages: Mapping[str, bytes]) -> bytes:
    """The metrics of all replicas in Prometheus' text format, with the label `replica`.

    Args:
        pages: the metrics of each replica in that format, by the name of the replica.
    """
    joined: dict[str, Metric] = {}
    for replica, page in pages.items():
        for family in text_string_to_metric_families(page.decode()):
            metric = joined.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, "replica": replica}
                metric.add_sample(sample.name, labels, sample.value)
    registry = CollectorRegistry()
    registry.register(_Pages(joined.values()))
    return generate_latest(registry)
