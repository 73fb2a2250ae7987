"""The messages and stubs generated from protos/credit_service/v1 when the package is installed."""
