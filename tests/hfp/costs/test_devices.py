import pytest

from hfp.costs.devices import PROFILES, Device, Seconds, parse_device
from hfp.errors import InputError


def test_a_round_takes_download_training_and_upload():
    device = Device("mine", macs=1e6, down=100.0, up=50.0)
    assert device.seconds(200, 3_000_000, 25) == Seconds(2.0, 3.0, 0.5)
    assert device.seconds(200, 3_000_000, 25).total == 5.5


def test_devices_by_name_and_by_figures():
    assert parse_device("board") is PROFILES["board"]
    assert parse_device("5e9:1e6:5e5") == Device("5e9:1e6:5e5", 5e9, 1e6, 5e5)
    assert parse_device("5e9:1e6:5e5:64e6").memory == 64e6
    assert parse_device("board").memory is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phon", r"unknown device profile 'phon'; did you mean phone\?"),
        ("1:2", "three positive figures per second, e.g. 5e9:1e6:5e5, .*; found '1:2'"),
        ("1:2:x", "three positive figures"),
        ("1:2:0", "three positive figures"),
        ("1:2:inf", "three positive figures"),
        ("1:2:3:0", "its memory in bytes as a fourth; found '1:2:3:0'"),
        ("1:2:3:4:5", "its memory in bytes as a fourth"),
    ],
)
def test_other_words_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_device(text)
