"""The web gateway, which shows end users their credits; to mount or to run by itself."""

from credit_service.gateway.app import Gateway
from credit_service.gateway.bridge import Bridge
from credit_service.gateway.problems import Problem, problem_response
from credit_service.gateway.rate_limits import Limits, Rate
from credit_service.gateway.supabase import SupabaseUsers
from credit_service.gateway.tokens import JwtUsers, hashed_claim, uuid_claim
from credit_service.gateway.users import DevelopmentUsers, User

__all__ = [
    "Bridge",
    "DevelopmentUsers",
    "Gateway",
    "JwtUsers",
    "Limits",
    "Problem",
    "Rate",
    "SupabaseUsers",
    "User",
    "hashed_claim",
    "problem_response",
    "uuid_claim",
]
