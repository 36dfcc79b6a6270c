"""What is declared about the options of criteria is what the criteria take."""

import pytest

from hfp.importance import CriterionError, create, names
from hfp.importance.options import criterion_options

OPTIONS = [(name, option) for name in names() for option in criterion_options(name)]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_of_a_criterion_is_described(name, option):
    assert criterion_options(name)[option].help.endswith(".")


@pytest.mark.parametrize(("name", "option"), [pair for pair in OPTIONS if criterion_options(pair[0])[pair[1]].choices])
def test_the_choices_that_are_told_are_those_that_a_criterion_takes(name, option):
    needed = {"variation": None} if name == "variation" else {}
    for choice in criterion_options(name)[option].known:
        both = {"first_order": "signed"} if (option, choice) == ("fisher", "off") else {}
        create(name, **needed, **both, **{option: choice})
    with pytest.raises(CriterionError, match=option):
        create(name, **needed, **{option: "none of them"})
