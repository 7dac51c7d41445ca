"""What the guided tutorial says, a file for each language: templates/tutorial.LANG.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xdplab import language


@dataclass(frozen=True, slots=True)
class Texts:
    """The tutorial's words in one language."""

    _tables: dict[str, Any]

    @classmethod
    def of(cls, name: str) -> Texts:
        """The texts in one of language.LANGUAGES."""
        return cls(language.texts("tutorial", name))

    def word(self, key: str, **facts: object) -> str:
        """A sentence that belongs to no step."""
        return str(self._tables["words"][key]).format_map(facts)

    def of_step(self, step: str, key: str, **facts: object) -> str:
        """What a step has to say: title, what, why, look, done or failed."""
        return str(self._tables["steps"][step][key]).format_map(facts)
