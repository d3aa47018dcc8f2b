"""LiteLLM's proxy as a peer: a cache of embeddings in its own memory, one worker, its defaults otherwise."""

import shutil
from pathlib import Path

PROGRAM = shutil.which("litellm")
KEY = "sk-benchmark-0123456789abcdef0123456789abcdef"
"""Whoever asks; it starts with no weaker one."""

# Nothing is asked of the internet, and no request has a line in the log.
ENVIRON = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}

_CONFIG = """\
model_list:
  - model_name: text-embedding-v4
    litellm_params:
      model: openai/text-embedding-v4
      api_base: "http://127.0.0.1:{upstream}/compatible-mode/v1"
      api_key: sk-vendor
litellm_settings: {{cache: true, cache_params: {{type: local}}, drop_params: true}}
general_settings: {{master_key: {key}}}
"""


def command(folder: Path, port: int, upstream: int) -> list[str]:
    """What starts it on *port*, before the vendor's stand-in on *upstream*; its settings are written to *folder*."""
    assert PROGRAM is not None
    config = folder / "config.yaml"
    config.write_text(_CONFIG.format(upstream=upstream, key=KEY))
    return [PROGRAM, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
