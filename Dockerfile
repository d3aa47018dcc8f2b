# Build: dependencies and the package into one virtual environment.
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock pyproject.toml README.md ./
RUN python -m venv /opt/dashcache \
 && /opt/dashcache/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY proxy ./proxy
COPY config ./config
RUN /opt/dashcache/bin/pip install --no-cache-dir --no-build-isolation --no-deps .

# Run: the environment, an unprivileged user, a folder for what must outlive the container.
FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/dashcache --create-home dashcache
COPY --from=build /opt/dashcache /opt/dashcache
ENV PATH=/opt/dashcache/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DASHCACHE_DATA_DIR=/var/lib/dashcache \
    DASHCACHE_HTTP_LISTEN=0.0.0.0:8080 \
    DASHCACHE_GRPC_LISTEN=0.0.0.0:50051
USER dashcache
VOLUME /var/lib/dashcache
EXPOSE 8080 50051
STOPSIGNAL SIGTERM
# The admin listener stays on the container's loopback; publish it only with a token (DASHCACHE_ADMIN_TOKEN).
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["dashcache", "health"]
ENTRYPOINT ["dashcache"]
CMD ["run"]
