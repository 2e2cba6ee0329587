"""The arguments of `serve run disa.server.ray:app`."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ...engines.open import ENGINES
from ...errors import InvalidRequest
from ..settings import ServerSettings, read_settings


class Arguments(BaseModel):
    """Arguments of the application, and the settings of `disa-serve` under their names.

    All values may be text, because `serve run` passes text.
    """

    model_config = ConfigDict(extra="allow")

    plan: list[str] = Field(description="Paths of plans, the same on every machine.")
    engine: str = Field("auto", description="Engine of the graphs: see disa-serve.")
    threads: int | None = Field(None, ge=1, description="CPU threads of a replica.")
    gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of a replica; 1 by default if the engine can use a GPU of the cluster.",
    )
    cpus: float | None = Field(
        None, ge=0, description="Cores of a replica; threads by default, or 1."
    )
    min_replicas: int = Field(1, ge=0, description="Replicas of an idle server.")
    max_replicas: int | None = Field(
        None, ge=1, description="Replicas under load; by default one for each GPU of the cluster."
    )
    target_requests: float | None = Field(
        None,
        gt=0,
        description="Requests of a replica, waiting ones included, above which replicas are added; "
        "max_images by default.",
    )
    upscale_delay: float = Field(
        10.0, ge=0, description="Seconds above the target until one is added."
    )
    downscale_delay: float = Field(
        600.0, ge=0, description="Seconds below the target until one is removed."
    )
    fronts: int = Field(1, ge=1, description="Processes between the proxies and the replicas.")
    api_key_file: str | None = Field(None, description="See disa-serve; on every machine.")

    @field_validator("plan", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("engine")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ENGINES:
            raise ValueError(f"must be one of {', '.join(ENGINES)}")
        return value

    def settings(self) -> ServerSettings:
        """The settings of the server.

        Raises:
            InvalidRequest: there is no setting with a name, or a value is not valid.
        """
        values = dict(self.model_extra or {})
        cors = values.pop("cors", ())
        return read_settings(values, cors=tuple(cors.split(",") if isinstance(cors, str) else cors))

    def plans(self) -> list[str]:
        """The absolute paths of the plans.

        Raises:
            InvalidRequest: a plan does not exist on this machine.
        """
        paths = [Path(plan).absolute() for plan in self.plan]
        for path in paths:
            if not path.is_file():
                raise InvalidRequest(f"{path}: the plan does not exist")
        return [str(path) for path in paths]
