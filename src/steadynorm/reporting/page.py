"""Pages from templates: what every report page has, and how a page is rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steadynorm.reporting.numbers import NONE

__all__ = ["Facts", "facts", "render_page"]


Facts = Sequence[tuple[str, str]]
"""Names and values, for a definition list."""


MANY = 24
"""Values that are listed at most, such as names of classes; the record has them all."""


def facts(values: Mapping[str, Any]) -> Facts:
    """Turn a configuration into names and values that can be read; nested mappings are flattened."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = str(key).replace("_", " ")
        if isinstance(value, Mapping):
            found += [(f"{name}: {inner}", text) for inner, text in facts(value)]
        else:
            found.append((name, _text(value)))
    return found


def render_page(template: str, **content: Any) -> str:  # noqa: ANN401 - a template takes anything
    """Render a template of this package; everything put into it is escaped unless it is marked as markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("steadynorm.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**content)


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        if len(value) > MANY:
            return f"{', '.join(_text(item) for item in value[:MANY])} and {len(value) - MANY:,} more"
        return ", ".join(_text(item) for item in value) or NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return NONE if value is None or value == "" else str(value)
