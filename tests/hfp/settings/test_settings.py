"""A setting is declared once; the checks, the readers and the tables follow from the declaration."""

import copy
import dataclasses
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfp.errors import InputError
from hfp.settings import EITHER, PAIRS, SEVERAL, check_settings, described, markdown, pair, setting, settings_of, shown
from hfp.settings.interval import Interval


@dataclasses.dataclass(frozen=True)
class Oven:
    degrees: int = setting(180, "The oven has this temperature.", within="[50, 250]", unit="celsius", group="heat")
    share: float = setting(0.5, "This share of it is used.", within="[0, 1)", reason="doors need room", group="heat")
    hours: float | None = setting(None, "It stops after this time.", kind=float, within="(0, inf)", group="time")
    fan: bool = setting(False, "The fan turns.", group="time")
    mode: str = setting("top", "Heat comes from here.", choices={"top": "above", "bottom": "below"}, group="time")
    trays: int = setting((1, 3), "These trays are used.", kind=int, shape=SEVERAL, within="[1, 5]", group="time")
    timer: float = setting(1.0, "It rings after these minutes.", shape=EITHER, group="time")
    extras: dict = setting({}, "Parts of it are set apart.", kind=float, shape=PAIRS, choices={"lamp": ""}, noun="part")

    def __post_init__(self):
        check_settings(self)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"degrees": 300}, r"degrees must be in \[50, 250\]; found 300"),
        ({"degrees": 100.5}, "degrees must be a whole number; found 100.5"),
        ({"degrees": True}, "degrees must be a whole number; found True"),
        ({"degrees": [100]}, r"degrees must be a whole number; found \[100\]"),
        ({"degrees": None}, "degrees must be a whole number; found None"),
        ({"share": 1.0}, r"share must be in \[0, 1\): doors need room; found 1.0"),
        ({"share": math.nan}, "share must be in .* found nan"),
        ({"hours": 0}, "hours must be a finite number above 0; found 0"),
        ({"hours": math.inf}, "hours must be a finite number above 0; found inf"),
        ({"hours": 10**400}, "hours must be a finite number above 0; found 10"),
        ({"timer": math.inf}, "timer must be a finite number; found inf"),
        ({"timer": []}, r"timer must be a number or a list of numbers; found \[\]"),
        ({"timer": [1.0, "a"]}, "timer must be a number or a list of numbers; found 'a'"),
        ({"fan": 1}, "fan must be true or false; found 1"),
        ({"mode": "botom"}, "unknown mode 'botom'; did you mean bottom"),
        ({"mode": 3}, "mode must be a name; found 3"),
        ({"trays": 3}, "trays must be a list of whole numbers; found 3"),
        ({"trays": [0]}, r"trays must be in \[1, 5\]; found 0"),
        ({"extras": 3}, "extras must be a table of names and numbers; found 3"),
        ({"extras": {"lmap": 1.0}}, r"unknown part 'lmap'; did you mean lamp\?"),
        ({"extras": {"lamp": "on"}}, "part lamp must be a number; found 'on'"),
        ({"extras": {3: 1.0}}, "extras must be a table of names and numbers; found {3: 1.0}"),
    ],
)
def test_a_value_that_does_not_fit_its_declaration_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        Oven(**given)


def test_values_come_in_normal_form_and_are_not_the_callers():
    extras = {"lamp": 2}
    oven = Oven(trays=[1, 2], timer=[1, 2.5], extras=extras)
    extras["lamp"] = 3
    assert (oven.trays, oven.timer, dict(oven.extras)) == ((1, 2), (1, 2.5), {"lamp": 2})
    with pytest.raises(TypeError, match="does not support item assignment"):
        oven.extras["lamp"] = 4
    assert Oven.degrees == Oven().degrees == 180


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_settings_can_be_copied_given_to_other_processes_and_written(copied):
    oven = Oven(extras={"lamp": 2.0})
    assert copied(oven) == oven
    assert json.loads(json.dumps(dataclasses.asdict(oven)))["extras"] == {"lamp": 2.0}
    with pytest.raises(TypeError, match="does not support item assignment"):
        copied(oven).extras.update(lamp=3.0)


def test_a_subclass_with_another_default_keeps_the_declaration():
    @dataclasses.dataclass(frozen=True)
    class Grill(Oven):
        degrees: int = 240

    assert Grill().degrees == settings_of(Grill)["degrees"].default == 240
    assert settings_of(Grill)["degrees"].help == settings_of(Oven)["degrees"].help
    with pytest.raises(InputError, match=r"degrees must be in \[50, 250\]"):
        Grill(degrees=20)


def test_a_field_that_declares_nothing_is_held_to_the_kind_of_its_default():
    @dataclasses.dataclass(frozen=True)
    class Plain:
        turns: int = 3
        weight: float | None = None
        sizes: tuple = (1, 2)

        def __post_init__(self):
            check_settings(self, "option {} of plain")

    assert Plain(weight=2, sizes=[3]).sizes == (3,)
    with pytest.raises(InputError, match="option turns of plain must be a whole number; found 'x'"):
        Plain(turns="x")
    with pytest.raises(InputError, match="option weight of plain must be a number; found 'x'"):
        Plain(weight="x")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner)),
       st.sampled_from([entry.name for entry in dataclasses.fields(Oven)]))  # fmt: skip
def test_any_value_is_taken_or_refused_in_one_line(value, name):
    try:
        Oven(**{name: value})
    except InputError as refusal:
        assert "\n" not in str(refusal)


def test_a_text_is_read_as_the_declaration_says():
    read = {name: declared.read for name, declared in settings_of(Oven).items()}
    assert read["degrees"]("200") == 200
    assert read["degrees"]("hot") == "hot"
    assert read["timer"]("1.5") == 1.5
    assert read["timer"]("1.5,2") == (1.5, 2.0)
    assert read["trays"]("4") == (4,)
    assert read["extras"]("lamp=1 fan-speed=high") == {"lamp": 1, "fan_speed": "high"}
    with pytest.raises(InputError, match="part lamp is given twice: 1 and 2; give it once"):
        read["extras"]("lamp=1 lamp=2")
    with pytest.raises(InputError, match="extras must be NAME=VALUE pairs with spaces between them; found 'lamp'"):
        read["extras"]("lamp")


def test_a_pair_has_a_name_and_a_value():
    assert pair("a-b=[1, 2]") == ("a_b", [1, 2])
    assert pair("a=b=c") == ("a", "b=c")
    assert pair("a=" + "[" * 100_000) == ("a", "[" * 100_000)
    assert pair("a=" + "1" * 100_000) == ("a", "1" * 100_000)
    with pytest.raises(InputError, match="expected NAME=VALUE; found 'a'"):
        pair("a")


def test_what_is_shown_of_a_value_is_short_and_of_one_line():
    deep = []
    for _ in range(5_000):
        deep = [deep]
    assert len(shown(deep)) < 100
    assert len(shown("x" * 10_000)) < 200
    assert shown(2**50_000) == "a whole number of 50,001 bits"
    assert "\n" not in shown("a\nb")


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(), st.sampled_from("[("), st.sampled_from("])"))
def test_an_interval_holds_what_mathematics_says(least, most, value, left, right):
    above = value >= least if left == "[" else value > least
    below = value <= most if right == "]" else value < most
    assert (value in Interval(f"{left}{least!r}, {most!r}{right}")) == (above and below)


def test_the_table_says_default_range_and_meaning_under_the_groups_heading():
    lines = markdown(settings_of(Oven).values()).splitlines()
    assert lines[0] == "### Heat"
    first = settings_of(Oven)["degrees"]
    parted = [first, dataclasses.replace(first, name="grill", group="other"), dataclasses.replace(first, name="fan")]
    assert [line for line in markdown(parted).splitlines() if line.startswith("###")] == ["### Heat", "### Other"]
    assert "| `degrees` | 180 | in [50, 250] | The oven has this temperature. |" in lines
    assert "| `mode` | top | top, bottom | Heat comes from here (top: above; bottom: below). |" in lines
    assert described(settings_of(Oven)["share"]) == {
        "name": "share", "default": 0.5, "allowed": "in [0, 1)", "unit": "", "help": "This share of it is used.",
    }  # fmt: skip
