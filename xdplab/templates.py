"""The Jinja2 templates of templates/."""

from __future__ import annotations

from xdplab.workspace import PROJECT


def render(name: str, **values: object) -> str:
    """The template `name` filled in; a value that it asks for and doesn't get is an error."""
    import jinja2  # here: most commands render nothing

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PROJECT / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  # what is rendered is make's language, not HTML
    )
    return environment.get_template(name).render(**values)
