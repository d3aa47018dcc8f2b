"""nginx, as Debian packages it: its own cache keyed on the body, Lua with Redis, and a bare reverse proxy."""

import shutil
from pathlib import Path

PROGRAM = shutil.which("nginx") or "/usr/sbin/nginx"
_MODULES = Path("/usr/lib/nginx/modules")
_LUA = ("ndk_http_module.so", "ngx_http_lua_module.so")

# Redis is spoken by hand: Debian has no package of a client for it.
_GET = r"""
local body = ngx.req.get_body_data() or ""
local key = ngx.sha1_bin(body)
local line = ngx.socket.tcp()
assert(line:connect("127.0.0.1", %d))
line:send("*2\r\n$3\r\nGET\r\n$20\r\n" .. key .. "\r\n")
local size = tonumber(line:receive():sub(2))
local value
if size >= 0 then
  value = line:receive(size)
  line:receive(2)
else
  local answer = ngx.location.capture("/upstream" .. ngx.var.request_uri, { method = ngx.HTTP_POST, body = body })
  value = answer.body
  line:send("*3\r\n$3\r\nSET\r\n$20\r\n" .. key .. "\r\n$" .. #value .. "\r\n" .. value .. "\r\n")
  line:receive()
end
line:setkeepalive(60000, 256)
ngx.header["Content-Type"] = "application/json"
ngx.header["Content-Length"] = #value
ngx.print(value)
"""


def has_lua() -> bool:
    """Whether the modules for Lua are installed."""
    return all((_MODULES / name).exists() for name in _LUA)


def cache(folder: Path, port: int, upstream: int) -> str:
    """proxy_cache, keyed on target and body."""
    return _conf(
        folder,
        port,
        """location / {
          proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header Connection "";
          proxy_cache kept; proxy_cache_methods POST; proxy_cache_valid 200 1h;
          proxy_cache_key "$request_uri|$request_body";
        }""",
        upstream,
        extra=f"proxy_cache_path {folder}/cache keys_zone=kept:50m max_size=1g;",
    )


def lua_redis(folder: Path, port: int, upstream: int, redis_port: int) -> str:
    """The body hashed in Lua, the answer from Redis."""
    script = folder / "get.lua"
    script.write_text(_GET % redis_port)
    places = f"""location / {{ lua_need_request_body on; content_by_lua_file {script}; }}
        location /upstream/ {{ internal; proxy_pass http://upstream/; }}"""
    modules = "".join(f"load_module {_MODULES / name};\n" for name in _LUA)
    return modules + _conf(folder, port, places, upstream)


def relay(folder: Path, port: int, upstream: int) -> str:
    """A reverse proxy that keeps nothing and does not wait for the end of an answer."""
    place = """location / {
          proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header Connection "";
          proxy_buffering off; proxy_request_buffering off;
        }"""
    return _conf(folder, port, place, upstream)


def _conf(folder: Path, port: int, places: str, upstream: int, extra: str = "") -> str:
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
    user root; worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
    events {{ worker_connections 8192; }}
    http {{
      access_log off; keepalive_requests 1000000000; client_body_buffer_size 64k; client_max_body_size 64m;
      {temporary} {extra}
      upstream upstream {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
      server {{ listen 127.0.0.1:{port}; {places} }}
    }}"""
