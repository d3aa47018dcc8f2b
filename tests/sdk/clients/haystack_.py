from haystack.components.embedders import OpenAITextEmbedder

print(OpenAITextEmbedder(model="text-embedding-v4").run("a text to embed")["embedding"])
