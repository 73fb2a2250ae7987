"""The web gateway: what end users see of the credit service, to mount or to run by itself."""

from credit_service.gateway.app import Gateway
from credit_service.gateway.bridge import Bridge
from credit_service.gateway.limits import Limits, Rate
from credit_service.gateway.problems import Problem, problem_response
from credit_service.gateway.users import DevelopmentUsers, User

__all__ = [
    "Bridge",
    "DevelopmentUsers",
    "Gateway",
    "Limits",
    "Problem",
    "Rate",
    "User",
    "problem_response",
]
