"""What workers, gateways and the bridge install: the clients, and holds around work."""

from credit_service.client.blocking import BlockingCreditClient
from credit_service.client.credit_client import CreditClient
from credit_service.client.credits import Payment, item_error

__all__ = ["BlockingCreditClient", "CreditClient", "Payment", "item_error"]
