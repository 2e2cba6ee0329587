"""A server on a fake model, as a process: `serve_fake.py '{"seconds": 0.1, "max_queue": 20}'`."""

import json
import sys
import time

from fake_family import FakeFamily, fake_model

from disa.errors import EngineError
from disa.server.http import logs
from disa.server.metrics import Metrics
from disa.server.run import serve
from disa.server.scheduling.model import Model
from disa.server.scheduling.policy import JoinAtOnce
from disa.server.scheduling.worker import Worker
from disa.server.service import Service
from disa.server.settings import ServerSettings


def main() -> None:
    """Serve until a signal ends it."""
    given = json.loads(sys.argv[1])
    family = FakeFamily(given.pop("seconds", 0.0))
    load_seconds, broken = given.pop("load_seconds", 0.0), given.pop("broken", False)
    settings = ServerSettings(**{"port": 0, **given})

    def load() -> Model:
        time.sleep(load_seconds)
        if broken:
            raise EngineError("the engine is of another machine: build it again")
        return fake_model(family)

    logs.configure()
    metrics = Metrics()
    worker = Worker(
        "fake",
        load,
        JoinAtOnce(),
        max_images=settings.max_images,
        max_queue=settings.max_queue,
        warm_up_seconds=0,
        observer=metrics.observer("fake"),
    )
    service = Service([worker], settings, metrics)
    metrics.watch(service.workers)
    serve(service)


if __name__ == "__main__":
    main()
