import os

from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

made = OpenAIEmbeddingFunction(
    api_key=os.environ["OPENAI_API_KEY"], api_base=os.environ["OPENAI_BASE_URL"], model_name="text-embedding-v4"
)
print([float(number) for number in made(["a text to embed"])[0]])
