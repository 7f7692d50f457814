"""Names of teacher and public text in a submitted recipe."""

from __future__ import annotations

import pytest

from edgewise.apps.server.distilling import check_names
from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.recipe import from_plain


@pytest.mark.parametrize(
    ("teacher", "public", "refused"),
    [
        ("teacher-4m", "notes.jsonl", ""),
        ("bundled", "plays-public", ""),
        ("hub:owner/name@abc", "python-stdlib", ""),
        ("../teacher", "notes.txt", "teacher"),
        ("/srv/teacher", "notes.txt", "teacher"),
        ("models/teacher", "notes.txt", "teacher"),
        ("..", "notes.txt", "teacher"),
        ("bundled", "/etc/passwd", "public"),
        ("bundled", "hub:owner/name", "public"),
        ("bundled", "notes.txt\n", "public"),
    ],
)
def test_a_recipe_names_no_path_of_the_server(teacher: str, public: str, refused: str) -> None:
    recipe = from_plain({"privacy": "none", "distill": {"every": 2, "teacher": teacher, "public": public}})
    if not refused:
        check_names(recipe)
        return
    with pytest.raises(RecipeError, match=rf"distill\.{refused} = ") as e:
        check_names(recipe)
    assert e.value.code == "E-COMBO"
