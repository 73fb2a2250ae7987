"""The blocking client at the path that callers import; its code is in `credit_service.client`."""

from credit_service.client import BlockingCreditClient

__all__ = ["BlockingCreditClient"]
