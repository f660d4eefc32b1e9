# The image of the daemon. Build: docker build -t edgewise .
# For the same image each time, give the base by its digest, and SOURCE_DATE_EPOCH.
ARG BASE=python:3.13-slim

FROM ${BASE} AS builder
ARG SOURCE_DATE_EPOCH=1577836800
WORKDIR /src
COPY pyproject.toml requirements.lock requirements-build.lock README.md LICENSE ./
COPY deploy/make-venv deploy/healthcheck.py deploy/
COPY agent agent
COPY policies policies
# What runs may not write, so it is compiled here; by content, since builders set times anew.
RUN deploy/make-venv /opt/edgewise python3 \
    && /opt/edgewise/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/edgewise/lib \
    && install -m 0644 deploy/healthcheck.py /opt/edgewise/ \
    && /opt/edgewise/bin/edgewise --version

FROM ${BASE}
ARG SOURCE_DATE_EPOCH=1577836800
LABEL org.opencontainers.image.title="Edgewise" \
      org.opencontainers.image.description="Routes inference jobs to this device or to the cloud, and says why" \
      org.opencontainers.image.licenses="Apache-2.0"
# The number is fixed so that files on a volume keep their owner from image to image.
RUN useradd --uid 10001 --no-log-init --no-create-home --home-dir /var/lib/edgewise \
        --shell /usr/sbin/nologin edgewise \
    && install -d -o edgewise -g edgewise -m 0700 /var/lib/edgewise \
    && install -d /etc/edgewise
COPY --from=builder /opt/edgewise /opt/edgewise
ENV PATH=/opt/edgewise/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    EDGEWISE_HTTP__LISTEN=0.0.0.0:9464
USER 10001
VOLUME /var/lib/edgewise
EXPOSE 9464
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "/opt/edgewise/healthcheck.py"]
# `docker stop` kills after 10 s, which jobs alone may take to end: run with --stop-timeout 20.
ENTRYPOINT ["edgewise"]
CMD ["run"]
