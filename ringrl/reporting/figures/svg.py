"""A matplotlib figure as inline SVG that follows the page's light and dark mode, as small as it can be."""

import io
import re
import xml.etree.ElementTree as ElementTree
from zlib import crc32

import matplotlib
from matplotlib.figure import Figure

from ringrl.reporting.figures.drawn_values import panels_json
from ringrl.reporting.figures.style import CSS_VARIABLES, Look

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

_LENGTHS = ("d", "x", "y", "transform")  # attributes that are coordinates, in units of 1/72 inch


def to_svg(figure: Figure, look: Look, prefix: str) -> str:
    """The figure as an inline `<svg>`: ids depend on `prefix`, colours are CSS variables, text stays text.

    Coordinates are rounded to a tenth of a point, those of marks to a hundredth; fonts are left to the page.
    """
    stream = io.StringIO()
    with matplotlib.rc_context(look.rc()):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return in_css_variables(to_inline(stream.getvalue(), prefix, panels_json(figure)))


def in_css_variables(text: str) -> str:
    """The placeholders of `page_look`'s colours replaced by the page's own variables."""
    return re.sub("|".join(CSS_VARIABLES), lambda match: CSS_VARIABLES[match.group()], text)


def to_inline(document: str, prefix: str, panels: str = "") -> str:
    """matplotlib's SVG document as an element of a page; `prefix` keeps its ids apart from those of other figures, and
    `panels` (`ringrl.reporting.figures.drawn_values.panels_json`) is kept as an attribute."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(document)
    _strip(root)
    _rename_ids(root, f"f{crc32(prefix.encode()):x}")
    _flatten(root)
    marks = {element for part in root.iter(f"{{{SVG}}}defs") for element in part.iter()}
    for element in root.iter():
        _shorten(element, digits=2 if element in marks else 1)
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    if panels:
        root.set("data-panels", panels)
    return ElementTree.tostring(root, encoding="unicode")


def _strip(root: ElementTree.Element) -> None:
    """Removes metadata and the style sheet: inside a page the latter would apply to every other SVG too."""
    for child in list(root):
        if child.tag == f"{{{SVG}}}metadata":
            root.remove(child)
    for parent in list(root.iter(f"{{{SVG}}}defs")):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}style":
                parent.remove(child)


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Makes ids short and unique in the page, and drops those that nothing refers to."""
    new: dict[str, str] = {}

    def rename(old: str) -> str:
        return new.setdefault(old, f"{prefix}-{len(new)}")

    for element in root.iter():
        reference = element.attrib.pop(f"{{{XLINK}}}href", element.attrib.pop("href", None))
        for key, value in element.attrib.items():
            element.attrib[key] = re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{rename(match[1])})", value)
        if reference is not None:
            element.attrib = {"href": f"#{rename(reference.removeprefix('#'))}"} | element.attrib
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in new:
            element.attrib["id"] = new[name]


def _flatten(element: ElementTree.Element) -> None:
    """Replaces groups without attributes by their children, and moves the style that all marks share to their group."""
    children: list[ElementTree.Element] = []
    for child in element:
        _flatten(child)
        children += child if child.tag == f"{{{SVG}}}g" and not child.attrib else [child]
    element[:] = [child for child in children if len(child) or child.attrib or (child.text or "").strip()]
    styles = {child.get("style") if child.tag == f"{{{SVG}}}use" else None for child in element}
    if element.tag == f"{{{SVG}}}g" and "style" not in element.attrib and len(styles) == 1 and None not in styles:
        element.attrib["style"] = element[0].attrib["style"]
        for mark in element:
            del mark.attrib["style"]


def _shorten(element: ElementTree.Element, digits: int) -> None:
    """Rounds coordinates, and drops rotations by 0, spaces and fonts, which change nothing on the page."""
    if element.tag != f"{{{SVG}}}text":
        element.text = (element.text or "").strip() or None
    element.tail = None
    for key in _LENGTHS:
        if key in element.attrib:
            element.attrib[key] = re.sub(r"-?\d+\.\d+", lambda match: _round(match[0], digits), element.attrib[key])
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if "d" in element.attrib:
        element.attrib["d"] = re.sub(r"\s*([A-Za-z])\s*", r"\1", element.attrib["d"]).strip()
    if "style" in element.attrib:
        style = re.sub(r"font-family:[^;]*(;|$)", "", element.attrib["style"])
        element.attrib["style"] = re.sub(r"\s*([:;])\s*", r"\1", style).strip("; ")


def _round(number: str, digits: int) -> str:
    return f"{round(float(number), digits) + 0.0:.{digits}f}".rstrip("0").rstrip(".")
