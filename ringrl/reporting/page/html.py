"""A self-contained page from one of this folder's templates."""

import base64
import hashlib
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ringrl.reporting.figures.drawing import Rendered
from ringrl.reporting.figures.style import SERIES_DARK, SERIES_LIGHT

_SCRIPTS = ("values.js", "figures.js", "tables.js")
_PACKAGES = ("ringrl", "jax", "flax", "numpy", "scipy", "dm-control", "mujoco", "matplotlib")


def render_page(template: str, now: datetime, *, colours: dict[str, int], **content: Any) -> str:
    """The page as text.

    Args:
        template: the file's name; it extends `base.html`.
        now: when the page is written, in UTC.
        colours: of each label, as an index that wraps around.
        content: what else the template names: at least `title`, `byline`, `versions`, and `numbers`, the name of the
            file beside the page that has all numbers.
    """
    loader = PackageLoader("ringrl.reporting.page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # One script, known by its hash: what a name from a file might smuggle in does not run.
    script = "".join(_part(name) for name in _SCRIPTS)
    return environment.get_template(template).render(
        style=Markup(_part("style.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        light=SERIES_LIGHT,
        dark=SERIES_DARK,
        colours={label: index % len(SERIES_LIGHT) for label, index in colours.items()},
        date=f"{now.day} {now:%B %Y}",
        written=f"{now:%Y-%m-%d %H:%M} UTC",
        **content,
    )


def on_page(figure: Rendered) -> dict[str, Any]:
    """A figure as the templates' `figure` takes it."""
    return {
        "drawing": figure.drawing,
        "wide": Markup(figure.wide),
        "narrow": Markup(figure.narrow),
        "wide_values": figure.wide_values,
        "narrow_values": figure.narrow_values,
    }


def versions() -> list[tuple[str, str]]:
    """(package, version) of what wrote the report, those that are installed."""
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found


def _part(name: str) -> str:
    return (files("ringrl.reporting.page") / "templates" / name).read_text(encoding="utf-8")
