"""Where a request on everybody's port goes, and what must never get there."""

import pytest
from aiohttp import hdrs, web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import ClientError
from proxy.server.http.admission import Intake
from proxy.vendors.choice import Choice

TOKEN = (b"dashvector-auth-token", b"sk-vectors")
KEY = (b"Authorization", b"Bearer sk-texts")
VECTORS, TEXTS = "/v1/collections/abc/query", "/api/v1/services/embeddings/text-embedding/text-embedding"
NAMES = {"second.test": "second", "intl.test": "intl"}
WITH = Choice(NAMES, "dashscope", "dashvector")
WITHOUT = Choice(NAMES, "dashscope", None)
OTHER_CLUSTER = "vrs-cn-other.dashvector.cn-hangzhou.aliyuncs.com"


@pytest.mark.parametrize("choice", [WITH, WITHOUT])
@pytest.mark.parametrize(("path", "lines"), [(VECTORS, (TOKEN,)), (TEXTS, (KEY,)), ("/", ())])
def test_a_name_of_ours_decides_whatever_is_asked(choice, path, lines):
    assert choice("second.test", path, lines) == "second"
    assert choice("intl.test", path, lines) == "intl"


@pytest.mark.parametrize("host", ["", "127.0.0.1", "[::1]", "vectors.test", "dashscope.aliyuncs.com"])
@pytest.mark.parametrize("path", [TEXTS, "/", "/v1/embeddings", "/compatible-mode/v1/collections", "/v1", ""])
def test_what_is_not_dashvectors_goes_to_dashscope(host, path):
    assert WITH(host, path, (KEY,)) == WITHOUT(host, path, (KEY,)) == "dashscope"


@pytest.mark.parametrize("path", [VECTORS, "/v1/collections", "/v1/collections/", "/service_version"])
@pytest.mark.parametrize("lines", [(), (KEY,), (TOKEN,)])
def test_dashvectors_paths_go_to_dashvector_or_nowhere(path, lines):
    assert WITH("vectors.test", path, lines) == "dashvector"
    with pytest.raises(ClientError) as caught:
        WITHOUT("vectors.test", path, lines)
    assert caught.value.status == 421


SPELLINGS = st.sampled_from([b"dashvector-auth-token", b"DashVector-Auth-Token", b"DASHVECTOR-AUTH-TOKEN"])


@given(st.text(max_size=20), SPELLINGS, st.binary(max_size=5), st.lists(st.just(KEY), max_size=2))
def test_a_dashvector_token_never_reaches_dashscope(path, name, value, others):
    lines = (*others, (name, value))
    assert WITH("anything", "/" + path, lines) == "dashvector"
    with pytest.raises(ClientError):
        WITHOUT("anything", "/" + path, lines)


@pytest.mark.parametrize("lines", [(TOKEN,), (KEY,)])
def test_another_cluster_is_not_mistaken_for_ours(lines):
    with pytest.raises(ClientError) as caught:
        WITH(OTHER_CLUSTER, VECTORS, lines)
    assert caught.value.status == 421
    assert WITH(OTHER_CLUSTER, TEXTS, (KEY,)) == "dashscope", "it is no name that speaks of vectors alone"


# --- as it comes over HTTP --------------------------------------------------------------------------------------------


def chosen(host: str, target: str = VECTORS) -> str:
    """The upstream for a request with this Host."""
    raw: web.BaseRequest = make_mocked_request(
        hdrs.METH_POST, target, headers={"Host": host, "Dashvector-Auth-Token": "sk"}
    )
    return Intake(WITH, frozenset({"second.test", "second.test:8080", "localhost"})).request(raw).upstream


@pytest.mark.parametrize("host", ["second.test", "SECOND.test", "second.test:8080", "second.test.", "Second.Test.:80"])
def test_a_name_is_the_same_in_every_spelling(host):
    assert chosen(host) == "second"


@pytest.mark.parametrize(
    "host", [OTHER_CLUSTER, OTHER_CLUSTER + ".", OTHER_CLUSTER.upper() + ":443", OTHER_CLUSTER + ".:1"]
)
def test_another_cluster_is_refused_in_every_spelling(host):
    with pytest.raises(ClientError) as caught:
        chosen(host)
    assert caught.value.status == 421


def test_in_absolute_form_the_authority_decides_whatever_host_says():
    assert chosen("anything", "http://SECOND.test:8080" + VECTORS) == "second"
    assert chosen("second.test", "http://localhost" + VECTORS) == "dashvector"
    with pytest.raises(ClientError):
        chosen("second.test", "http://" + OTHER_CLUSTER + VECTORS)
    with pytest.raises(ClientError):
        chosen("second.test", "http://second.test@elsewhere" + VECTORS)


@pytest.mark.parametrize("path", [TEXTS, "/compatible-mode/v1/embeddings", "/api-ws/v1/inference", "/api/v1/anything"])
def test_one_set_of_headers_for_both_vendors_does_not_lead_texts_astray(path):
    assert WITH("anything.test", path, (KEY, TOKEN)) == WITHOUT("anything.test", path, (KEY, TOKEN)) == "dashscope"
