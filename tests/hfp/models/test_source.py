import pytest
import torch

from hfp.errors import InputError
from hfp.models.source import images_of


def test_images_are_the_same_each_time_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert images_of((1, 4, 5)).shape == (2, 1, 4, 5)
    assert torch.equal(images_of((1, 4, 5)), images_of((1, 4, 5)))
    assert torch.equal(torch.rand(2), expected)


def test_images_that_no_memory_holds_are_refused():
    with pytest.raises(InputError, match="two images of 3 x 1099511627776 x 1099511627776 do not fit into memory"):
        images_of((3, 2**40, 2**40))
