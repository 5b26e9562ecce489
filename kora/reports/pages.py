"""Self-contained pages for the browser, with shared colours."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, Template

from kora import __version__
from kora.console.identity import DARK, LIGHT

__all__ = ["page_of"]


def page_of(package: str, name: str = "page.html") -> Template:
    """A template of a package, with the colours of light and dark screens."""
    loader = ChoiceLoader([PackageLoader(name, "") for name in (package, "kora.reports")])
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True)
    pages.globals |= {"light": LIGHT, "dark": DARK, "version": __version__}
    return pages.get_template(name)
