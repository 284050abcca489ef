"""Registries refuse doubles, suggest neighbours and load entry points when first asked."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from dlprobe import registry
from dlprobe.errors import RegistryError
from dlprobe.registry import Registry


@pytest.fixture
def colours():
    found = Registry("colour", "dlprobe.colours")
    found.register("red")(1)
    found.register("blue")(2)
    return found


def test_names_are_found_and_sorted(colours):
    assert colours["red"] == 1
    assert list(colours) == ["blue", "red"]
    assert "red" in colours
    assert "green" not in colours


def test_register_returns_what_it_was_given(colours):
    @colours.register("green")
    def green():
        return 3

    assert colours["green"] is green
    assert green() == 3


def test_doubles_are_refused_and_the_first_stays(colours):
    with pytest.raises(RegistryError, match="colour 'red' is registered twice"):
        colours.register("red")(9)
    assert colours["red"] == 1


def test_a_near_miss_gets_a_suggestion(colours):
    with pytest.raises(RegistryError, match="no colour 'rad'; did you mean red"):
        colours["rad"]


def test_a_far_miss_gets_the_list(colours):
    with pytest.raises(RegistryError, match="no colour 'zzzzzz'; there are: blue, red"):
        colours["zzzzzz"]


def test_entry_points_are_loaded_on_the_first_miss_only(colours, monkeypatch):
    asked = []

    def entry_points(group):
        asked.append(group)
        return EntryPoints(
            [EntryPoint("tau", "math:tau", group), EntryPoint("broken", "no_such_module:x", group)],
        )

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert colours["red"] == 1
    assert asked == []
    assert colours["tau"] == pytest.approx(6.2831853)
    assert colours["tau"] == pytest.approx(6.2831853)
    assert asked == ["dlprobe.colours"]
    assert list(colours) == ["blue", "red", "tau"]
    with pytest.raises(RegistryError, match="taz"):
        colours["taz"]


def test_a_registry_without_a_group_asks_nobody(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: pytest.fail("asked"))
    with pytest.raises(RegistryError, match="no shape 'x'"):
        Registry("shape")["x"]
