"""Webhooks and alerts: what happened, sent to HTTP endpoints as Standard Webhooks."""
