"""Warnings of other packages that nobody here can do anything about, by message."""

MLFLOW = (  # 3.17, with newer versions of what it builds on
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:.*Any type hint is inferred as AnyType",
    "ignore:Operation with range is deprecated",
)
