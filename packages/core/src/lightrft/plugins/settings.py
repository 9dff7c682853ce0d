"""Settings that a plugin brings: a pydantic model in its spec, a section of the recipe under the plugin's name. No torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class PluginSettings(BaseModel):
    """Base of a plugin's settings: every field has a default and a description; what is unknown is an error.

    Example:
        >>> from pydantic import Field
        >>> class AcmeSettings(PluginSettings):
        ...     strength: float = Field(0.5, gt=0, description="how much")
        >>> AcmeSettings(strength=2.0).strength
        2.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
