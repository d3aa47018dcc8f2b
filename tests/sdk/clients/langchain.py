from langchain_community.embeddings import DashScopeEmbeddings

print(DashScopeEmbeddings(model="text-embedding-v4").embed_query("a text to embed"))
