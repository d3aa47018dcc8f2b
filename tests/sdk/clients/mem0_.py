from mem0.configs.embeddings.base import BaseEmbedderConfig
from mem0.embeddings.openai import OpenAIEmbedding

made = OpenAIEmbedding(BaseEmbedderConfig(model="text-embedding-v4", embedding_dims=1024))
print(made.embed("a text to embed"))
