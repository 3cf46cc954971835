"""Recipes for any model and data: what a user must give them."""

from __future__ import annotations

OPEN = {"decoder": "smollm2", "encoder": "minilm"}  # and a model of that kind


def of(recipe: str) -> list[str]:
    """The recipe, with a model, data and steps where it leaves them to the user."""
    model = OPEN.get(recipe.removesuffix("_narrow"))
    given = [f"model.path={model}", "data.source=json", "data.train=rows.jsonl", "train.num_steps=2"]
    return [f"recipe={recipe}", *(given if model else [])]
