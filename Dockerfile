# The image of the daemon. Build: docker build -t edgewise .
ARG BASE=python:3.13-slim

FROM ${BASE} AS builder
WORKDIR /src
COPY pyproject.toml requirements.lock requirements-build.lock README.md LICENSE ./
COPY deploy/make-venv deploy/
COPY agent agent
COPY policies policies
# What runs may not write, so it is compiled here.
RUN deploy/make-venv /opt/edgewise python \
    && /opt/edgewise/bin/python -m compileall -q /opt/edgewise/lib \
    && /opt/edgewise/bin/edgewise --version

FROM ${BASE}
LABEL org.opencontainers.image.title="Edgewise" \
      org.opencontainers.image.description="Routes inference jobs to this device or to the cloud, and says why" \
      org.opencontainers.image.licenses="Apache-2.0"
# The number is fixed so that files on a volume keep their owner from image to image.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/edgewise --shell /usr/sbin/nologin edgewise \
    && install -d -o edgewise -g edgewise -m 0700 /var/lib/edgewise \
    && install -d /etc/edgewise
COPY --from=builder /opt/edgewise /opt/edgewise
ENV PATH=/opt/edgewise/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    EDGEWISE_HTTP__LISTEN=0.0.0.0:9464
USER 10001
VOLUME /var/lib/edgewise
EXPOSE 9464
# Not by urllib, which would ask a proxy that the environment names.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 9464, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
# `docker stop` kills after 10 s, which jobs alone may take to end: run with --stop-timeout 20.
ENTRYPOINT ["edgewise"]
CMD ["run"]
