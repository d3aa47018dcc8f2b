"""A gRPC code in the words of logs: its name, and the HTTP status of the same meaning."""

import pytest

from proxy.core.grpc_status import GrpcStatus, name_of

# isort: split
from proxy.transport import grpc as _quiet  # noqa: F401  before the library

# isort: split
import grpc


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_has_the_librarys_name(code):
    assert name_of(code.value[0]) == code.name


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, 200), (1, 499), (3, 400), (4, 504), (5, 404), (7, 403), (8, 429), (12, 501), (13, 500), (14, 503), (16, 401)],
)
def test_a_clients_error_is_of_the_class_of_clients_errors(code, status):
    assert GrpcStatus(code).as_http == status


@pytest.mark.parametrize("code", [-1, 17, 99])
def test_a_code_that_nobody_knows_is_unknown(code):
    assert (name_of(code), GrpcStatus(code).as_http) == ("UNKNOWN", 500)


def test_no_call_has_no_name():
    assert name_of(None) is None
