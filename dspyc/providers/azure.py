"""Azure OpenAI: the plain client at `/openai/v1/`, and a deployment that serves what was tuned.

Azure serves a tuned model from a deployment, which its management API makes and bills by the hour. Deploy it under the name
that `deployment` gives in train_kwargs; the tuned LM calls that name.
"""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import ConfigError
from . import openai_settings
from .openai import OpenAIProvider
from .store import JobRecord


class AzureProvider(OpenAIProvider):
    """The job is OpenAI's; the address, the key and the deployment are Azure's."""

    name: ClassVar[str] = "azure"
    connects: ClassVar[tuple[str, ...]] = ("api_base", "api_version")
    calls: ClassVar[tuple[str, ...]] = ("api_version",)
    variables: ClassVar[tuple[str, ...]] = ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY")
    usual: ClassVar[Mapping[str, Any]] = {}  # each resource has an address of its own
    credentials: ClassVar[str] = "Set AZURE_API_KEY and AZURE_API_BASE, or pass api_key and api_base to dspyc.LM."
    allowed: ClassVar[tuple[str, ...]] = (*openai_settings.SETTINGS, "deployment")
    serving: ClassVar[tuple[str, ...]] = ("deployment",)
    marks: ClassVar[bool] = False

    def check_settings(self, model: str, settings: Mapping[str, Any]) -> None:
        super().check_settings(model, settings)
        self.address()
        if not isinstance(settings.get("deployment"), str) or not settings["deployment"]:
            raise ConfigError(
                "Azure serves a tuned model from a deployment, and `deployment` is not in train_kwargs.",
                hint="Pass the name under which you will deploy it, and deploy it when the job has succeeded: "
                "az cognitiveservices account deployment create.",
            )

    def serve(self, record: JobRecord, model: str) -> str:
        return f"azure/{record.settings['deployment']}"

    def stop_endpoint(self, record: JobRecord) -> None:
        """Not from here, where the deployment was not made.

        Raises:
            ConfigError: Always; it says how.
        """
        name = record.settings["deployment"]
        raise ConfigError(
            f"The deployment {name!r} was made at Azure, and is paid by the hour until it is deleted there.",
            hint=f"az cognitiveservices account deployment delete --deployment-name {name} (--name, --resource-group).",
        )

    def address(self) -> str:
        """`https://<resource>.openai.azure.com/openai/v1/`.

        Raises:
            ConfigError: No resource is named.
        """
        resource = self.connection.get("api_base")
        if not resource:
            raise ConfigError("Which Azure resource is meant is not known.", hint=self.credentials)
        return f"{resource}/openai/v1/"

    def connected(self, connection: Mapping[str, Any]) -> dict[str, Any]:
        """The resource alone, whichever of its addresses was given."""
        found = super().connected(connection)
        if found.get("api_base"):
            found["api_base"] = found["api_base"].removesuffix("/openai/v1").removesuffix("/openai")
        return found

    @classmethod
    def environment(cls) -> dict[str, Any]:
        found = os.environ.get("AZURE_API_BASE") or os.environ.get("AZURE_OPENAI_ENDPOINT")
        return {"api_base": found} if found else {}
