# The credit service as an image: `docker run IMAGE` serves, `docker run IMAGE migrate` and its like
# run the other commands of credit-service. Settings come from the environment; at the least
# CREDIT_DATABASE_URL, CREDIT_IDENTITIES, and CREDIT_TLS_CERTIFICATE with CREDIT_TLS_KEY. The Stripe
# bridge and the web gateway are in it too: `docker run --entrypoint stripe-bridge IMAGE serve`,
# `docker run --entrypoint credit-gateway IMAGE serve`.

FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY scripts/install-image scripts/install_locked.py scripts/wheel scripts/
COPY scripts/image-requirements.lock scripts/build-requirements.lock scripts/
COPY protos protos
COPY credit_service credit_service
COPY stripe_bridge stripe_bridge
RUN scripts/install-image /opt/credit-service

FROM python:3.11-slim-bookworm
RUN python -m pip uninstall --yes pip setuptools wheel \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin credit
COPY --from=build /opt/credit-service /opt/credit-service
ENV PATH=/opt/credit-service/bin:$PATH \
    CREDIT_LISTEN=0.0.0.0:50051 \
    CREDIT_HEALTH_LISTEN=127.0.0.1:50052
USER 10001:10001
EXPOSE 50051
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["credit-service", "health"]
ENTRYPOINT ["credit-service"]
CMD ["serve"]
