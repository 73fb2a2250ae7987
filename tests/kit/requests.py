"""Parts of requests that many tests send."""

from credit_service.v1 import credit_service_pb2 as pb


def payment(ref: str = "pi_1", amount_minor: int = 999, currency: str = "eur") -> pb.Payment:
    """Makes the payment behind a purchase."""
    return pb.Payment(ref=ref, amount_minor=amount_minor, currency=currency)


def limits(minute: int = 0, hour: int = 0, day: int = 0) -> pb.SpendLimits:
    """Makes the spend limits of an account, in credits; 0: none."""
    return pb.SpendLimits(per_minute=minute, per_hour=hour, per_day=day)
