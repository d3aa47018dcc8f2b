import os

import litellm

made = litellm.embedding(
    model="openai/text-embedding-v4", input=["a text to embed"], api_base=os.environ["OPENAI_BASE_URL"]
)
print(made.data)
