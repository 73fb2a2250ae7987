"""The blocking client at the path that callers know; it lives in `credit_service.client`."""

from credit_service.client import BlockingCreditClient

__all__ = ["BlockingCreditClient"]
