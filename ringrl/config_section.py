"""What every block of a configuration is."""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class ConfigSection(BaseModel):
    """One block of a configuration: frozen; keys that it does not know and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_switches(cls, value: Any, info: Any) -> Any:
        """YAML reads yes, on and true as booleans, which Python would take for the number 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is not a value of this setting")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        """A path in the home folder, of a store, a file of an agent or a teacher's run, is written out."""
        begins = isinstance(value, str | Path) and str(value).startswith("~") and "/" in str(value)
        return type(value)(os.path.expanduser(value)) if begins else value
