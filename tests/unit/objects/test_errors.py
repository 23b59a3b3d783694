"""The errors that services answer with."""

import pytest

from zcompute.objects.errors import SERVICE_ERRORS, ServiceError


@pytest.mark.parametrize("kind", SERVICE_ERRORS, ids=lambda kind: kind.__name__)
def test_a_service_error_has_a_wire_name_of_its_own_and_carries_its_details(kind):
    error = kind("said", uuid="u")
    assert kind.wire_name == kind.__name__
    assert isinstance(error, ServiceError)
    assert (str(error), error.message, error.details) == ("said", "said", {"uuid": "u"})


def kinds_of(kind: type[ServiceError]) -> set[type[ServiceError]]:
    below = kind.__subclasses__()
    return {*below, *(further for one in below for further in kinds_of(one))}


def test_every_service_error_is_listed_for_registration():
    assert set(SERVICE_ERRORS) == kinds_of(ServiceError)
    assert len({kind.wire_name for kind in SERVICE_ERRORS}) == len(SERVICE_ERRORS)
