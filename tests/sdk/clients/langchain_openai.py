from langchain_openai import OpenAIEmbeddings

# Else it sends token ids, which DashScope does not take.
made = OpenAIEmbeddings(model="text-embedding-v4", check_embedding_ctx_length=False)
print(made.embed_query("a text to embed"))
