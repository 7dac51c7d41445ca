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
        # not make's language, nor Markdown
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
    )
    return environment.get_template(name).render(**values)
