"""The package for workers, gateways and the bridge: the clients, and holds around work."""

from credit_service.client.blocking import BlockingCreditClient
from credit_service.client.credit_client import CreditClient
from credit_service.client.credits import Payment, item_error
from credit_service.client.cursor_file import CursorFile

__all__ = ["BlockingCreditClient", "CreditClient", "CursorFile", "Payment", "item_error"]
