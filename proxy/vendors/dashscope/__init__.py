"""DashScope: embeddings, in its native form and in the OpenAI-compatible one."""
