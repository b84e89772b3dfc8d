"""A self-contained page from one of this folder's templates."""

from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ringrl.reporting.figures.style import SERIES_DARK, SERIES_LIGHT

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
    return environment.get_template(template).render(
        style=Markup((files("ringrl.reporting.page") / "templates" / "style.css").read_text(encoding="utf-8")),
        light=SERIES_LIGHT,
        dark=SERIES_DARK,
        colours={label: index % len(SERIES_LIGHT) for label, index in colours.items()},
        date=f"{now.day} {now:%B %Y}",
        written=f"{now:%Y-%m-%d %H:%M} UTC",
        **content,
    )


def versions() -> list[tuple[str, str]]:
    """(package, version) of what wrote the report, those that are installed."""
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found
