from llama_index.embeddings.dashscope import DashScopeEmbedding

print(DashScopeEmbedding(model_name="text-embedding-v4").get_text_embedding("a text to embed"))
