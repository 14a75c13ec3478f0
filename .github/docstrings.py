"""How the docs builder reads our docstrings."""

import griffe


class Examples(griffe.Extension):
    """Read the section "Example", which the builder knows in the plural only, so that its code is shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rename the section in the docstring of each object."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
