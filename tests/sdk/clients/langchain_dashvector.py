import time

import dashvector
from langchain_community.vectorstores import DashVector
from langchain_core.embeddings import DeterministicFakeEmbedding

client = dashvector.Client(endpoint="vectors.test", api_key="sk-langchain")
if "langchain" not in client.list().output:
    assert client.create("langchain", 8).code == 0
    assert client.get("langchain").upsert([("1", [0.1] * 8, {"text": "known"})]).code == 0
    time.sleep(0.5)  # for a moment after a write nothing is kept
store = DashVector(client.get("langchain"), DeterministicFakeEmbedding(size=8), "text")
print(store.similarity_search_by_vector([0.1] * 8, k=1))
