"""Which models a command line asks for, and what requests may call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.errors import ConfigError
from halfbyte.server.names import AskedModel, asked_models, model_names


def test_one_model_is_loaded_at_the_start_however_it_is_given() -> None:
    assert asked_models(None, []) == [AskedModel("smollm2")]
    assert asked_models("m", []) == [AskedModel("m")]
    assert asked_models("m", [], "n") == [AskedModel("m", "n")]
    assert asked_models(None, ["m"]) == [AskedModel("m")]
    assert asked_models(None, ["n=m"]) == [AskedModel("m", "n")]
    assert asked_models(None, ["m"], "n") == [AskedModel("m", "n")]


def test_of_several_the_argument_is_loaded_at_the_start() -> None:
    later = [AskedModel("b", "x", at_start=False), AskedModel("c", at_start=False)]
    assert asked_models("a", ["x=b", "c"]) == [AskedModel("a"), *later]
    assert asked_models("a", ["x=b", "c"], "n") == [AskedModel("a", "n"), *later]
    assert asked_models(None, ["x=b", "c"]) == later


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    file = tmp_path / "a=b.gguf"
    file.touch()
    assert asked_models(None, [str(file)]) == [AskedModel(str(file))]
    assert asked_models(None, [f"n={file}"]) == [AskedModel(str(file), "n")]


@pytest.mark.parametrize("entry", ["=m", "n=", " = ", "", "a\nb=m", "x" * 201 + "=m"])
def test_an_entry_without_name_or_path_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match="NAME=PATH"):
        asked_models("a", [entry])


def test_a_name_is_given_once() -> None:
    with pytest.raises(ConfigError, match="'x' is given twice"):
        asked_models(None, ["x=a", "x=b"])
    with pytest.raises(ConfigError, match="'x' is given twice"):
        asked_models("a", ["x=b"], "x")
    with pytest.raises(ConfigError, match="--served-name"):
        asked_models(None, ["a", "b"], "x")


def test_names_are_those_given_then_the_models_own(tmp_path: Path) -> None:
    assert model_names(AskedModel("smollm2"), "Own") == ["smollm2", "Own"]
    assert model_names(AskedModel("smollm2", "n"), "Own") == ["n", "smollm2", "Own"]
    assert model_names(AskedModel(str(tmp_path)), "Own") == ["Own"]
    assert model_names(AskedModel("https://x/y"), "Own") == ["Own"]
    # What another model is called is left to that one.
    assert model_names(AskedModel(str(tmp_path), "n"), "Own", {"Own"}) == ["n"]
    with pytest.raises(ConfigError, match="'Own', as another model"):
        model_names(AskedModel(str(tmp_path)), "Own", {"Own"})
