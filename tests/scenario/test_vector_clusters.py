"""Which DashVector cluster a request goes to, and that what is not configured goes nowhere."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.proxy_process import ProxyProcess
from tests.vendor_sim.dashvector_clients import TOKEN, sdk_client, sdk_endpoints
from tests.vendor_sim.dashvector_package import dashvector
from tests.vendor_sim.dashvector_runner import DashVectorThreadSim, dashvector_thread
from tests.vendor_sim.runner import sim_thread


@dataclass
class Clusters:
    """Two clusters that hold other documents under the same names, and a proxy in front of both."""

    first: DashVectorThreadSim
    second: DashVectorThreadSim
    proxy: ProxyProcess
    second_grpc: str


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    with ExitStack() as stack:
        stack.enter_context(sdk_endpoints())
        first, second = (stack.enter_context(dashvector_thread()) for _ in range(2))
        config = tmp_path_factory.mktemp("clusters") / "clusters.toml"
        config.write_text(
            f"""
            [[upstreams]]
            name = "second"
            vendor = "dashvector"
            url = "{second.http_url}"
            grpc_url = "http://{second.grpc_address}"
            hosts = ["second.test"]
            grpc_listen = "127.0.0.1:0"
            """
        )
        proxy = stack.enter_context(
            ProxyProcess(
                dashvector_url=first.http_url,
                dashvector_grpc_url=f"http://{first.grpc_address}",
                env={"DASHCACHE_CONFIG": str(config), "DASHCACHE_VECTOR_SETTLE_S": "0.01"},
            )
        )
        for number, sim in enumerate((first, second)):
            with sdk_client("grpc", sim.grpc_address) as client:
                assert client.create("things", 2).code == 0
                things = client.get("things")
                assert things.upsert([dashvector.Doc(id=f"of-{number}", vector=[1.0, 0.0])]).code == 0
        yield Clusters(first, second, proxy, proxy.wait_log("ready")["grpc"][1])


def query(url: str, host: str) -> tuple[int, list[Any]]:
    """Status, and the ids that a query under the name *host* finds; or the code of a refusal."""
    body = json.dumps({"vector": [1.0, 0.0], "topk": 5}).encode()
    lines = {"Host": host, "dashvector-auth-token": TOKEN, "Content-Type": "application/json"}
    request = urllib.request.Request(url + "/v1/collections/things/query", body, lines)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, [each["id"] for each in json.load(answer)["output"]]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, [json.load(error)["code"]]


def test_the_name_chooses_the_cluster_over_http(clusters: Clusters) -> None:
    for _ in range(2):  # the second time from the cache
        assert query(clusters.proxy.http_url, "anything.test") == (200, ["of-0"])
        assert query(clusters.proxy.http_url, "second.test") == (200, ["of-1"])
        assert query(clusters.proxy.http_url, "SECOND.test:8080") == (200, ["of-1"])


def test_the_port_chooses_the_cluster_over_grpc(clusters: Clusters) -> None:
    for address, found in ((clusters.proxy.grpc_address, "of-0"), (clusters.second_grpc, "of-1")):
        for _ in range(2):
            with sdk_client("grpc", address) as client:
                assert [each.id for each in client.get("things").query([1.0, 0.0]).output] == [found]


def test_a_cluster_that_is_not_configured_is_refused_and_nobody_is_asked(clusters: Clusters) -> None:
    asked = clusters.first.asked + clusters.second.asked
    refused = query(clusters.proxy.http_url, "vrs-cn-other.dashvector.cn-hangzhou.aliyuncs.com")
    assert refused == (421, [-999])
    assert clusters.first.asked + clusters.second.asked == asked


def test_without_a_cluster_no_dashvector_request_reaches_dashscope(tmp_path: Path) -> None:
    with sim_thread() as dashscope, ProxyProcess(dashscope_url=dashscope.url, data_dir=tmp_path) as proxy:
        assert query(proxy.http_url, "127.0.0.1")[0] == 421
        assert dashscope.requests == []
        # The token alone is enough to tell, whatever the path.
        request = urllib.request.Request(proxy.http_url + "/", headers={"dashvector-auth-token": TOKEN})
        with pytest.raises(urllib.error.HTTPError, match="421"):
            urllib.request.urlopen(request, timeout=10)
        assert dashscope.requests == []
