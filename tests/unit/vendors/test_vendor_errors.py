"""Errors of ours in the vendor's shape."""

import json

import pytest

from proxy.vendors.errors import error_body

MESSAGE = 'quote " and é'


@pytest.mark.parametrize("path", ["/compatible-mode/v1/embeddings", "/compatible-api/v1/reranks"])
def test_compatible_paths_get_errors_in_openais_form(path):
    assert json.loads(error_body(path, "a_code", MESSAGE, "id")) == {
        "error": {"message": MESSAGE, "type": "a_code", "param": None, "code": "a_code"},
        "request_id": "id",
    }


@pytest.mark.parametrize("path", ["/api/v1/tasks/1", "/", "/compatible-modest", ""])
def test_all_other_paths_get_the_native_form(path):
    assert json.loads(error_body(path, "a_code", MESSAGE, "id")) == {
        "code": "a_code",
        "message": MESSAGE,
        "request_id": "id",
    }
